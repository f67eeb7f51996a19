"""Configurations of MMDetection: those of this package by name, others by file."""

import copy
import inspect
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

__all__ = ['config_path', 'innermost', 'last_checkpoint', 'named_checkpoint', 'read_config', 'shipped_config']

_logger = logging.getLogger(__name__)
# What MMEngine and MMDetection read beside the arguments of the Runner.
_ALSO_READ = (
    'activation_checkpointing', 'compile', 'custom_imports', 'dataset_meta', 'efficient_conv_bn_eval',
    'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn', 'tta_model', 'tta_pipeline')

_PACKAGE = Path(__file__).parents[1]
# The folder lies inside an installed package, and beside the package in a checkout.
_FOLDERS = (_PACKAGE / 'mmdet_configs', _PACKAGE.parent / 'mmdet_configs')


def shipped_config(name: str) -> Path:
    """Path of one of this package's configurations, by its name in ``mmdet_configs``, with or without ``.py``.

    Raises:
        FileNotFoundError: there is no such configuration; the message lists similar names.
    """
    for folder in _FOLDERS:
        for wanted in (name, Path(name).name):
            path = folder / f'{wanted.removesuffix(".py")}.py'
            if path.is_file():
                return path
    shipped = [path.stem for folder in _FOLDERS for path in folder.glob('*.py')]
    raise FileNotFoundError(f'{name} is neither a file nor a configuration of timm_se_plugin; similar names: '
                            f'{", ".join(get_close_matches(name, shipped, cutoff=0)) or "none"}')


def config_path(name: str | Path) -> Path:
    """Path of a configuration.

    Args:
        name: a file, or the name of one of this package's configurations.

    Raises:
        FileNotFoundError: there is no such file or name; the message lists similar names.
    """
    path = Path(name)
    if path.is_dir():
        raise FileNotFoundError(_about_folder(path))
    return path if path.is_file() else shipped_config(str(name))


def innermost(dataset: Any) -> Any:
    """The configuration of the data set in wrappers such as RepeatDataset."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def named_checkpoint(folder: str | Path) -> str:
    """What MMEngine's file ``last_checkpoint`` in the folder of a training names; empty without such a file."""
    pointer = Path(folder, 'last_checkpoint')
    return pointer.read_text(encoding='utf-8').strip() if pointer.is_file() else ''


def last_checkpoint(folder: Path) -> Path:
    """The last checkpoint of the training in a folder, which need not be there, from the file that names it."""
    named = Path(named_checkpoint(folder))
    inside = folder / named.name  # the folder may have been moved or copied
    return named if named.is_file() and not inside.is_file() else inside


def _about_folder(folder: Path) -> str:
    """What to give in the place of a folder."""
    config = max(folder.glob('*.py'), key=lambda path: path.stat().st_mtime, default=None)
    if config and (folder / 'last_checkpoint').is_file():
        return f'{folder} is the folder of a training; give {config} and {last_checkpoint(folder)}'
    return (f'{folder} is a folder; to train on pictures and boxes, give --data {folder} and --model, such as '
            'faster-rcnn_se-r50_fpn_1x_coco')


def read_config(name: str | Path, options: Mapping[str, Any] | None = None, work_dir: str | None = None) -> Config:
    """Read a configuration.

    Args:
        name: a file, or the name of one of this package's configurations.
        options: values to change, as ``--cfg-options`` has them: ``{'model.backbone.attn': 'sk'}``.
        work_dir: folder for logs and checkpoints; if None, the configuration's own or ``work_dirs/<name>``.

    Raises:
        FileNotFoundError: as :func:`config_path`.
    """
    path = config_path(name)
    config = Config.fromfile(path)
    for option in options or {}:
        _warn_if_unread(option, config)
    config.merge_from_dict(copy.deepcopy(dict(options or {})))  # which takes '_delete_' out of them
    config.work_dir = work_dir or config.get('work_dir') or f'work_dirs/{path.stem}'
    return config


def _warn_if_unread(option: str, config: Config) -> None:
    """Warn of an option without effect: its first name is misspelt, or is a variable for other values of the file."""
    name = option.partition('.')[0]
    read = [*inspect.signature(Runner).parameters, *_ALSO_READ]
    if name in read:
        return
    close = get_close_matches(name, read, n=1)
    _logger.warning('--cfg-options %s: MMEngine does not read %r%s', option, name, (
        ', a variable of the file, whose value was copied to where it is used when the file was read; change the '
        'value there, such as train_dataloader.dataset.data_root in the place of data_root') if name in config else (
        f'; did you mean {close[0]!r}?' if close else ''))
