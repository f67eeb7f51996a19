"""MMDetection on today's PyTorch: without compiled operators, and without unpickling code from checkpoints.

This module has to be imported before ``mmcv.ops``, which imports its operators by name. No other module of this package
changes other packages.
"""

import argparse
import functools
import importlib.util
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import mmdet  # noqa: F401 (raises the error below if MMDetection is absent)
    import pycocotools.coco
    from mmengine.config import Config
    from mmengine.logging import HistoryBuffer
    from mmengine.runner import checkpoint
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error.name} is not installed; timm_se_plugin.detection needs `pip install "timm-se-plugin[mmdet]"`, or '
        '"timm-se-plugin[onedl]" for the maintained fork of the same packages', name=error.name) from error

from ..files.hub_files import check_not_pointer
from ..weights.reading import read_weights, reason_of
from .configs import shipped_config

# mmcv-lite has no mmcv._ext, and onedl-mmcv has none where its operators were not compiled. A compiled one is kept.
if importlib.util.find_spec('mmcv._ext') is None:
    from . import _operators
    sys.modules['mmcv._ext'] = _operators


def _statistic(owner: type, name: str) -> Callable:
    """Replace ``getattr``, by which MMEngine's checkpoints refer to the statistics of a ``HistoryBuffer``.

    Raises:
        UnpicklingError: the checkpoint asks for anything else.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'the checkpoint asks for {name!r} of {owner!r}, which MMEngine does not write')
    return getattr(owner, name)


# pycocotools prints these lines at each reading of annotations.
_PROGRESS = re.compile(r'loading annotations into memory\.\.\.|Done \(t=[\d.]+s\)|creating index\.\.\.|index created!')


def _print(*texts: Any, **options: Any) -> None:
    if not (len(texts) == 1 and _PROGRESS.fullmatch(str(texts[0]))):
        print(*texts, **options)


pycocotools.coco.print = _print

# torch.load refuses types that are not on its list. Beside tensors, MMEngine saves the histories of its logs, which are
# numpy arrays with named statistics, and the best score, which is a numpy scalar. In files that numpy 1 wrote, the
# names of numpy's constructors begin with numpy.core.
_constructors: dict[str, Any] = {
    '_reconstruct': np.empty(0).__reduce__()[0],
    'scalar': np.float64().__reduce__()[0],
}
torch.serialization.add_safe_globals([
    # For the options in a classifier's checkpoint. The name is given too, since timm removes the class itself from the
    # list after each load.
    (argparse.Namespace, 'argparse.Namespace'),
    HistoryBuffer, (_statistic, 'builtins.getattr'), np.ndarray, np.dtype,
    *(type(np.dtype(code)) for code in '?bhilqBHILQefd'),
    *((function, f'numpy.{core}.multiarray.{name}')
      for name, function in _constructors.items() for core in ('core', '_core')),
])

# For a URL, torchvision:// and open-mmlab://, MMEngine calls torch.utils.model_zoo, which unpickles arbitrary code
# unless weights_only=True is given.
checkpoint.load_url = functools.partial(checkpoint.load_url, weights_only=True)
# Where weights_only=True fails, the onedl fork loads the file again without it, and lets a pickle call getattr.
if hasattr(checkpoint, '_safe_torch_load'):
    checkpoint._safe_torch_load = functools.partial(torch.load, weights_only=True)


def check_checkpoint(filename: str) -> None:
    """Raise an error unless a checkpoint is a file, or is fetched from elsewhere, as ``https://…`` is."""
    if '://' in filename:
        return
    path = Path(filename).expanduser()
    if path.is_dir():
        inside = sorted(path.glob('*.pth'), key=lambda found: found.stat().st_mtime)
        raise ValueError(f'{filename} is a folder; give a checkpoint{f", such as {inside[-1]}" if inside else ""}')
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint {filename}')


@checkpoint.CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any) -> Any:  # MMEngine logs the name from its tenth letter on
    """Load a local checkpoint, as MMEngine does, or weights in safetensors, with errors that name the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is incomplete, is no checkpoint, or would run code.
    """
    check_checkpoint(filename)
    if filename.endswith('.safetensors'):
        return {'state_dict': read_weights(Path(filename).expanduser())[0]}
    try:
        return checkpoint.load_from_local(filename, map_location)
    except MemoryError:
        raise
    except Exception as error:  # the errors of pickle, zip and torch have no class in common
        check_not_pointer(filename)
        raise ValueError(f'{filename} is no complete checkpoint of weights; give another one, or copy the file again '
                         f'({type(error).__name__}: {reason_of(error)})') from error


_path_of_base = Config._get_cfg_path


def _path_of_base_or_shipped(base: str, filename: str) -> tuple[str, str | None]:
    package, _, name = base.partition('::')
    return (str(shipped_config(name)), None) if package == 'timm_se_plugin' else _path_of_base(base, filename)


# In a configuration, _base_ = 'timm_se_plugin::faster-rcnn_se-r50_fpn_1x_coco.py' is a file of this package, as
# 'mmdet::…' is one of MMDetection's. MMEngine itself finds only the configurations of OpenMMLab's packages.
Config._get_cfg_path = staticmethod(_path_of_base_or_shipped)
