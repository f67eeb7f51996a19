"""Fits a configuration of MMDetection to a folder of the user's pictures and boxes."""

import copy
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..weights.mm_config import type_name
from .checkpoint_hook import check_work_dir
from .configs import innermost, read_config
from .data_folder import Split, read_folder

__all__ = ['config_for_folder']

_logger = logging.getLogger(__name__)


def config_for_folder(
        model: str | Path, folder: str | Path, work_dir: str | Path | None = None, val_share: float | None = None,
        options: Mapping[str, Any] | None = None, resume: bool | str = False, launcher: str = 'none',
) -> Config:
    """A complete configuration that trains, validates and tests a detector on the data of a folder.

    Data sets, evaluators and the number of classes of each head are those of the data. The learning rate is scaled to
    the batch size where `model` has ``auto_scale_lr.base_batch_size``, and the warm-up lasts one epoch at most.

    Args:
        model: the configuration of the detector: a file, or the name of one of this package's.
        folder: the data, as :func:`~.data_folder.read_folder` takes it.
        work_dir: folder of the run, with converted annotations in ``annotations/``; if None, that of `options`, or else
            ``work_dirs/<name>``, where the name is that of `model` with the name of `folder` in place of the last
            field, the data set.
        val_share: share of the train split to validate on, where the folder has no val split.
        options: values to change, as ``--cfg-options`` has them; they come before those of the data.
        resume: whether a training that the folder of the run has is to be continued.
        launcher: what started the processes, as for :func:`~.running.train_detector`; their number says how many steps
            an epoch has.

    Returns:
        The configuration, with the file name that the run gives its copy in `work_dir`.

    Raises:
        FileExistsError: the folder of the run has a training that is not to be continued.
        FileNotFoundError: `model` does not exist, or as :func:`~.data_folder.read_folder`.
        ValueError: `model` has no data set or several data sets for a split, or as :func:`~.data_folder.read_folder`.
    """
    config = read_config(model, options)  # whose batch size decides how long an epoch is
    source = Path(str(config.filename))
    lacking = [f'{name}_dataloader' for name in ('train', 'val', 'test')
               if not (config.get(f'{name}_dataloader') or {}).get('dataset')]
    if lacking:
        raise ValueError(f'{source} has no {" and no ".join(lacking)} with a data set, into which --data could be put; '
                         'give --model a configuration that trains, validates and tests, or one with such a _base_')
    data = re.sub(r'[^\w-]+', '-', Path(folder).absolute().name).strip('-') or 'data'
    name = f'{source.stem.rpartition("_")[0] or source.stem}_{data}'
    config.work_dir = run = str(work_dir or (options or {}).get('work_dir') or Path('work_dirs', name))
    check_work_dir(config, resume)
    splits, classes = read_folder(folder, Path(run, 'annotations'), val_share)
    root = Path(folder).absolute()
    for of_config in ('train', 'val', 'test'):
        split = splits.get(of_config, splits['val'])
        _set_data(config, of_config, split, classes, root)
    _set_classes(config.model, len(classes))
    for left in ('data_root', 'dataset_type', 'metainfo', 'train_pipeline', 'test_pipeline', 'backend_args'):
        config.pop(left, None)  # variables of the file that nothing uses any more
    if 'base_batch_size' in (config.get('auto_scale_lr') or {}):
        config.auto_scale_lr.enable = True
    batch = config.train_dataloader.get('batch_size', 1) * int(
        os.environ.get('SLURM_NTASKS' if launcher == 'slurm' else 'WORLD_SIZE', 1))
    steps = max(len(splits['train'].content['images']) // batch, 2)
    schedules = config.get('param_scheduler') or []
    for schedule in schedules if isinstance(schedules, list) else [schedules]:
        if type_name(schedule) == 'LinearLR' and not schedule.get('by_epoch', True) and 'end' in schedule:
            schedule.end = min(schedule.end, steps)
    config.merge_from_dict(copy.deepcopy({**(options or {}), 'work_dir': run}))
    written = Path(run, f'{name}.py')
    if (resume or config.get('resume')) and written.is_file():
        begun = _data_root(written)
        if begun and Path(begun).resolve() != root.resolve():
            _logger.warning('the training in %s was begun with the data in %s, and goes on with those in %s; '
                            '--work-dir names another folder for a training of its own', run, begun, root)
    return Config(config.to_dict(), cfg_text=config.text, filename=str(written))


def _data_root(file: Path) -> str | None:
    """The folder of data in a configuration; None where a training was killed while it wrote the file."""
    try:
        return innermost(Config.fromfile(file).train_dataloader.dataset).get('data_root')
    except (AttributeError, SyntaxError):
        return None


def _set_data(config: Config, of_config: str, split: Split, classes: tuple[str, ...], root: Path) -> None:
    """Set the data set and the evaluator of a split."""
    dataset = innermost(config[f'{of_config}_dataloader'].dataset)
    if 'datasets' in dataset:
        raise ValueError(f'{config.filename}: {of_config}_dataloader has several data sets, and --data gives one; give '
                         '--model a configuration with one data set')
    file, pictures = (path.absolute() for path in (split.file, split.pictures))
    for replaced in ('metainfo', 'data_prefix'):  # an update would merge these with the new values
        dataset.pop(replaced, None)
    dataset.update(
        type='CocoDataset', data_root=root.as_posix(), metainfo={'classes': classes},
        ann_file=(file.relative_to(root) if file.is_relative_to(root) else file).as_posix(),
        data_prefix={'img': '' if pictures == root else f'{pictures.relative_to(root).as_posix()}/'})
    if of_config != 'train':
        evaluator = config.get(f'{of_config}_evaluator')
        known = type_name(evaluator) == 'CocoMetric'
        config[f'{of_config}_evaluator'] = {**(evaluator if known else {'metric': 'bbox'}), 'type': 'CocoMetric',
                                            'ann_file': file.as_posix()}


def _set_classes(part: Any, count: int) -> None:
    """Set ``num_classes`` of each head that classifies objects, in a part of a model."""
    if isinstance(part, dict):
        if 'num_classes' in part:
            part['num_classes'] = count
        if 'num_things_classes' in part:  # MaskFormer and Mask2Former, whose loss has a weight for no object too
            part.update(num_things_classes=count, num_stuff_classes=0)
            weights = part.get('loss_cls', {}).get('class_weight')
            if weights and len(weights) != count + 1:
                part['loss_cls']['class_weight'] = [weights[0]] * count + [weights[-1]]
        for name, inner in part.items():
            if name not in ('backbone', 'rpn_head', 'semantic_head'):
                _set_classes(inner, count)
    elif isinstance(part, (list, tuple)):
        for inner in part:
            _set_classes(inner, count)
