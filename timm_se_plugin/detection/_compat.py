"""MMDetection on today's PyTorch, without a compiler and without unpickling what a stranger wrote.

Imported before ``mmcv.ops``, which imports its operators by name. Other packages' insides are touched here only.
"""

import functools
import importlib.util
import sys

import numpy as np
import torch

for _name in ('mmengine', 'mmcv', 'mmdet'):
    if importlib.util.find_spec(_name) is None:
        raise ModuleNotFoundError(
            f'{_name} is not installed; timm_se_plugin.detection needs `pip install "timm-se-plugin[mmdet]"`, or '
            '"timm-se-plugin[onedl]" for the maintained fork of the same packages', name=_name)

from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint

# mmcv-lite, and onedl-mmcv where its operators were not compiled, have no mmcv._ext. Where there is one, it is used.
if importlib.util.find_spec('mmcv._ext') is None:
    from . import _operators
    sys.modules['mmcv._ext'] = _operators

# torch.load refuses types that it was not told of. MMEngine puts beside the tensors: the histories of its logs, numpy
# arrays, and the best score, a numpy scalar. Their constructors' names begin with numpy.core in files of numpy 1.
_rebuild_array = np.empty(0).__reduce__()[0]
_rebuild_scalar = np.float64().__reduce__()[0]
torch.serialization.add_safe_globals([
    HistoryBuffer, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in '?bhilqBHILQefd'},
    *((f, f'numpy.{core}.multiarray.{f.__name__}')
      for f in (_rebuild_array, _rebuild_scalar) for core in ('core', '_core')),
])

# A file by its URL, and those of torchvision:// and open-mmlab://, would be unpickled whole: the function of
# torch.utils.model_zoo that MMEngine calls for them still has weights_only=False as its default.
checkpoint.load_url = functools.partial(checkpoint.load_url, weights_only=True)
# The fork unpickles a file whole if weights alone do not load, and admits getattr before that.
if hasattr(checkpoint, '_safe_torch_load'):
    checkpoint._safe_torch_load = functools.partial(torch.load, weights_only=True)
