"""Whether a module's computation can be replaced by other operators with the same result."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    'can_overwrite', 'has_hooks', 'in_training', 'is_eager_inference', 'is_frozen', 'is_plain_conv', 'needs_formulas',
    'why_not_batch_norm', 'why_not_eager']


def has_hooks(*modules: nn.Module | None) -> bool:
    """Whether skipping the call of one of these modules would skip a hook or a ``forward`` set on the instance."""
    for module in modules:
        if module is not None and (
                'forward' in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks):
            return True
    every = nn.modules.module
    return bool(
        every._global_forward_hooks or every._global_forward_pre_hooks or every._global_backward_hooks
        or every._global_backward_pre_hooks)


def is_plain_conv(conv: Any) -> bool:
    """Whether this is an ``nn.Conv2d`` without hooks, whose output is a new tensor that only the caller holds."""
    return type(conv) is nn.Conv2d and not has_hooks(conv)


# By name, since this package imports only torch here. Other classes of the last name may have no ``eps``, as DETR's.
_FROZEN = ('torchvision.ops.misc.FrozenBatchNorm2d', 'mmdet.models.layers.brick_wrappers.FrozenBatchNorm2d')


def is_frozen(bn: nn.Module) -> bool:
    """Whether this is torchvision's or MMDetection's BatchNorm whose parameters and statistics are constants."""
    return f'{type(bn).__module__}.{type(bn).__name__}' in _FROZEN


def why_not_batch_norm(bn: Any, synchronised: bool = False) -> str:
    """Why this is not an ``nn.BatchNorm2d`` with weight, bias and running statistics; an empty string if it is one.

    ``synchronised`` admits ``nn.SyncBatchNorm`` too.
    """
    # Exact types: a subclass, and the class that torch's parametrisation makes, may compute anything.
    if type(bn) is not nn.BatchNorm2d and not (synchronised and type(bn) is nn.SyncBatchNorm):
        return f'the norm is a {type(bn).__name__}, not a BatchNorm2d'
    # Reading bn.bias under torch.fx would add a node to the graph. DataParallel and FSDP keep the bias elsewhere.
    has_no_bias = bn._parameters.get('bias', bn) is None
    if not bn.affine or has_no_bias or bn.running_mean is None or not bn.track_running_stats:
        return 'BatchNorm has no weight, no bias or no running statistics'
    return ''


def why_not_eager(x: Tensor) -> str:
    """Why the operators and derivatives of this package cannot take this input; an empty string if they can."""
    if isinstance(x, torch.fx.Proxy):
        return 'torch.fx traces the network'
    if torch._C._are_functorch_transforms_active():
        return 'torch.func transforms the network'
    if torch.autograd.forward_ad._current_level >= 0:
        return 'forward-mode differentiation is active'
    if type(x) is not Tensor or x.device.type not in ('cpu', 'cuda'):
        return f'the input is a {type(x).__name__} on {x.device.type}'
    if x.ndim != 4 or x.numel() == 0:
        return f'the input has shape {tuple(x.shape)}, not (N, C, H, W) with at least one value'
    return ''


def needs_formulas(*grads: Tensor | None) -> bool:
    """Whether the backward pass of these gradients has to be made of operators that PyTorch differentiates and maps.

    That is for a second derivative, and where many gradients are computed at once: by ``torch.func``, or by
    ``torch.autograd.grad`` with ``is_grads_batched``, whose tensors are those of an older vmap.
    """
    return (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
            or any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in grads))


def in_training(bn: nn.Module, x: Tensor) -> bool:
    """``bn.training``; if torch.fx traces x, a node that reads ``bn.training`` whenever the graph runs."""
    if isinstance(x, torch.fx.Proxy):
        return x.tracer.create_proxy('get_attr', x.tracer.path_of_module(bn), (), {}).training  # type: ignore
    return bn.training


def is_eager_inference(x: Tensor) -> bool:
    """Whether no gradient is recorded, and the operators of this package can take x, uncompiled and untraced."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or why_not_eager(x))


def can_overwrite(x: Tensor, conv: Any, bn: nn.Module) -> bool:
    """Whether what follows ``conv`` and ``bn`` may be written into x's memory, which saves allocating a map.

    That is at inference on a CPU, in eager mode, where conv has just computed x and no hook sees x or bn's output.
    """
    return is_eager_inference(x) and x.is_cpu and is_plain_conv(conv) and not has_hooks(bn)
