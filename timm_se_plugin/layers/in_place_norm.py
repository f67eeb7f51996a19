"""BatchNorm in the memory of its input, where nobody can see that."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._bypass import has_hooks, is_plain_conv, why_not_batch_norm, why_not_eager

__all__ = ['batch_norm_', 'normalize']


def batch_norm_(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """BatchNorm by given statistics in x's memory, on the CPU and without gradients.

    Shape: (N, C, H, W), and (C,) each -> (N, C, H, W).
    """
    if any(values.numel() != x.shape[1] for values in (weight, bias, mean, var)):  # the kernel would read beyond them
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    unused = mean.new_empty(0)  # for batch statistics, of which there are none
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps, out=(x, unused, unused))[0]


def normalize(x: Tensor, bn: Any, conv: Any) -> Tensor:
    """``bn(x)``, where x is what conv has just computed.

    At inference on the CPU it takes x's place: a new tensor of a map's size may cost several times the pass that fills
    it. Wherever somebody else might hold x, or see that bn is not called, it is called.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        x: output of conv.
        bn: any module; a BatchNorm2d in evaluation may work in place.
        conv: the module that computed x; only after a Conv2d, whose output is new, is its memory taken.
    """
    if (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or why_not_eager(x)
            or not x.is_cpu or not is_plain_conv(conv) or why_not_batch_norm(bn) or bn.training
            or has_hooks(bn)):
        return bn(x)
    return batch_norm_(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
