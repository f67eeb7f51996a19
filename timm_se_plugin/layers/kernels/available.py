"""Which tensors the kernels take."""

import functools
import warnings

import torch
from torch import Tensor

from .._bypass import why_not_eager

__all__ = ['has_kernels']

DEVICES = {'cuda'}  # AMD's GPUs too; tests add 'cpu' for Triton's interpreter
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def _imports_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        warnings.warn(
            f'Triton cannot be imported ({error}): residual blocks on this GPU run by PyTorch operators, which read '
            'and write their feature maps about twice as often as the kernels; `pip install triton` brings the kernels',
            stacklevel=2)
        return False
    return True


def has_kernels(x: Tensor) -> bool:
    """Whether the kernels take this feature map: eager mode, a GPU, four axes, at most 32 bits a value, and Triton."""
    if (isinstance(x, torch.fx.Proxy) or x.device.type not in DEVICES or torch.compiler.is_compiling()
            or torch.jit.is_tracing() or x.dtype not in _DTYPES or why_not_eager(x)):
        return False
    return _imports_triton()
