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
        _warn(f'Triton cannot be imported ({error})', '`pip install triton` brings the kernels')
        return False
    return True


@functools.cache
def _reaches_gpu() -> bool:
    """Whether Triton can call the driver: it builds a module for that, with a C compiler and Python's headers."""
    try:
        from triton.runtime import driver
        driver.active.get_current_target()
    except Exception as error:  # of a compiler, a driver, or a cache folder that cannot be written
        _warn(f'Triton does not reach this GPU ({error})', "it needs gcc or clang, and Python's headers (python3-dev)")
        return False
    return True


def _warn(reason: str, remedy: str) -> None:
    warnings.warn(
        f'{reason}: residual blocks on this GPU run by PyTorch operators, which read and write their feature maps '
        f'about twice as often as the kernels; {remedy}', stacklevel=3)


def has_kernels(x: Tensor) -> bool:
    """Whether the kernels take this feature map: eager mode, a GPU, four axes, at most 32 bits a value, and Triton.

    Where Triton cannot be imported or used, the first call on a GPU warns.
    """
    if (isinstance(x, torch.fx.Proxy) or x.device.type not in DEVICES or torch.compiler.is_compiling()
            or torch.jit.is_tracing() or x.dtype not in _DTYPES or why_not_eager(x)):
        return False
    return _imports_triton() and (x.is_cpu or _reaches_gpu())
