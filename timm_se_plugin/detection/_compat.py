"""MMDetection on today's PyTorch, without a compiler and without unpickling what a stranger wrote.

Imported before ``mmcv.ops``, which imports its operators by name. Other packages' insides are touched here only.
"""

import argparse
import functools
import importlib.util
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

try:
    import mmdet  # noqa: F401 (here only to be missed)
    from mmengine.logging import HistoryBuffer
    from mmengine.runner import checkpoint
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error.name} is not installed; timm_se_plugin.detection needs `pip install "timm-se-plugin[mmdet]"`, or '
        '"timm-se-plugin[onedl]" for the maintained fork of the same packages', name=error.name) from error

# mmcv-lite, and onedl-mmcv where its operators were not compiled, have no mmcv._ext. Where there is one, it is used.
if importlib.util.find_spec('mmcv._ext') is None:
    from . import _operators
    sys.modules['mmcv._ext'] = _operators


def _statistic(owner: type, name: str) -> Callable:
    """Do what the getattr in MMEngine's checkpoints does: name a statistic of ``HistoryBuffer``. Refuse any other."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'the checkpoint asks for {name!r} of {owner!r}, which MMEngine does not write')
    return getattr(owner, name)


# torch.load refuses types that it was not told of. MMEngine puts beside the tensors: the histories of its logs, numpy
# arrays with their statistics, and the best score, a numpy scalar. Their constructors' names begin with numpy.core in
# files of numpy 1.
_constructors: dict[str, Any] = {
    '_reconstruct': np.empty(0).__reduce__()[0],
    'scalar': np.float64().__reduce__()[0],
}
torch.serialization.add_safe_globals([
    # Named, since timm takes the bare class back after each load: the options in a classifier's checkpoint.
    (argparse.Namespace, 'argparse.Namespace'),
    HistoryBuffer, (_statistic, 'builtins.getattr'), np.ndarray, np.dtype,
    *(type(np.dtype(code)) for code in '?bhilqBHILQefd'),
    *((function, f'numpy.{core}.multiarray.{name}')
      for name, function in _constructors.items() for core in ('core', '_core')),
])

# A file by its URL, and those of torchvision:// and open-mmlab://, would be unpickled whole: the function of
# torch.utils.model_zoo that MMEngine calls for them still has weights_only=False as its default.
checkpoint.load_url = functools.partial(checkpoint.load_url, weights_only=True)
# The fork unpickles a file whole if weights alone do not load, and admits getattr before that.
if hasattr(checkpoint, '_safe_torch_load'):
    checkpoint._safe_torch_load = functools.partial(torch.load, weights_only=True)
