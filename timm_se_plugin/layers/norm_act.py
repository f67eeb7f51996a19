"""BatchNorm in the middle of a block, with the ReLU that follows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._bypass import can_overwrite, has_hooks, is_frozen, is_plain_conv, why_not_batch_norm
from .kernels import has_kernels

__all__ = ['batch_norm_', 'norm_act']


def batch_norm_(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """BatchNorm by given statistics, written into x's memory; on the CPU and without gradients.

    Shape: (N, C, H, W), and (C,) each -> (N, C, H, W).
    """
    channels = x.shape[1]
    if not channels == weight.numel() == bias.numel() == mean.numel() == var.numel():  # the operator reads past them
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    unused = mean.new_empty(0)  # the operator's outputs for batch statistics, which it does not compute here
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps, out=(x, unused, unused))[0]


def norm_act(x: Tensor, bn: Any, act: nn.Module | None = None, conv: nn.Module | None = None) -> Tensor:
    """``act(bn(x))``, where x is what ``conv`` has just computed.

    On a GPU BatchNorm and a ReLU run as kernels: they read and write the map 8 times in training where the modules take
    13, and keep only x for the backward pass, which computes the ReLU's mask again. At inference on the CPU BatchNorm
    writes into x's memory: allocating a tensor of a map's size may cost several times the pass that fills it.
    Everywhere else, and where hooks are registered on bn, the modules are called. An activation other than ReLU is
    called on the result.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        x: output of conv.
        bn: any module; only ``BatchNorm2d``, on a GPU also ``SyncBatchNorm`` and frozen BatchNorm, run in another way.
        act: the activation after bn; None after a downsample's convolution and before a drop layer.
        conv: the module that computed x. x's memory is reused only after an ``nn.Conv2d`` without hooks, whose output
            no other code holds.
    """
    if has_kernels(x) and not has_hooks(bn) and (is_frozen(bn) or not why_not_batch_norm(bn, synchronised=True)):
        from .kernels import functions  # imports Triton

        relu = type(act) is nn.ReLU and not has_hooks(act)
        x = functions.scale_shift_add(
            functions.normalize(x, bn), None, None, None, functions.RELU_LAST if relu else functions.NO_RELU,
            inplace=is_plain_conv(conv))
        return x if relu or act is None else act(x)
    if not bn.training and can_overwrite(x, conv, bn) and not why_not_batch_norm(bn):
        x = batch_norm_(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
    else:
        x = bn(x)
    return x if act is None else act(x)
