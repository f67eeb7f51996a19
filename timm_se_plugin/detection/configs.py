"""MMDetection's configurations: this package's by name, others by their file."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config

__all__ = ['config_path', 'read_config']

_PACKAGE = Path(__file__).parents[1]
# An installed package has the folder inside, a checkout beside the package.
_FOLDERS = (_PACKAGE / 'mmdet_configs', _PACKAGE.parent / 'mmdet_configs')


def config_path(name: str | Path) -> Path:
    """Path of a configuration.

    Args:
        name: a file, or the name of one of this package's configurations.

    Raises:
        FileNotFoundError: there is no such file or name; the message lists similar names.
    """
    if Path(name).is_file():
        return Path(name)
    ours = {path.stem: path for folder in _FOLDERS for path in folder.glob('*.py')}
    stem = Path(name).name.removesuffix('.py')
    if stem not in ours:
        raise FileNotFoundError(
            f'{name} is neither a file nor a configuration of timm_se_plugin; similar names: '
            f'{", ".join(get_close_matches(str(name), ours, cutoff=0)) or "none"}')
    return ours[stem]


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
    config.merge_from_dict(dict(options or {}))
    config.work_dir = work_dir or config.get('work_dir') or f'work_dirs/{path.stem}'
    return config
