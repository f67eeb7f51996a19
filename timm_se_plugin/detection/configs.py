"""Where this package's MMDetection configurations are, and how one is read."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config

__all__ = ['config_path', 'read_config']

_PACKAGE = Path(__file__).parents[1]
# In an installed package beside its modules, in a checkout beside the package.
_FOLDERS = (_PACKAGE / 'mmdet_configs', _PACKAGE.parent / 'mmdet_configs')


def config_path(name: str | Path) -> Path:
    """Path of a configuration: a file, or the name of one of this package's.

    Raises:
        FileNotFoundError: neither exists; similar names are given.
    """
    if Path(name).is_file():
        return Path(name)
    ours = {path.stem: path for folder in _FOLDERS for path in folder.glob('*.py')}
    if Path(name).name.removesuffix('.py') not in ours:
        raise FileNotFoundError(
            f'{name} is neither a file nor a configuration of timm_se_plugin; similar ones: '
            f'{", ".join(get_close_matches(str(name), ours, cutoff=0)) or "none"}')
    return ours[Path(name).name.removesuffix('.py')]


def read_config(name: str | Path, options: Mapping[str, Any] | None = None, work_dir: str | None = None) -> Config:
    """Read a configuration.

    Args:
        name: a file, or the name of one of this package's.
        options: what ``--cfg-options`` gives, ``{'model.backbone.attn': 'sk'}``.
        work_dir: folder for all that is written; that of the configuration, or ``work_dirs/<name>``, if None.
    """
    path = config_path(name)
    config = Config.fromfile(path)
    config.merge_from_dict(dict(options or {}))
    config.work_dir = work_dir or config.get('work_dir') or f'work_dirs/{path.stem}'
    return config
