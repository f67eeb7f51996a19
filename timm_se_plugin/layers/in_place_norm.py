"""The earlier name of :func:`norm_act` without an activation."""

from typing import Any

from torch import Tensor

from .norm_act import batch_norm_, norm_act

__all__ = ['batch_norm_', 'normalize']


def normalize(x: Tensor, bn: Any, conv: Any) -> Tensor:
    """``bn(x)``, where x is what conv has just computed; see :func:`norm_act`."""
    return norm_act(x, bn, None, conv)
