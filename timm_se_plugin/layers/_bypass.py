"""Whether a module's computation can be replaced by other operators that give the same."""

from typing import Any

import torch
from torch import Tensor, nn

from .squeeze_excite import SqueezeExcite

__all__ = ['has_hooks', 'is_plain_conv', 'learns', 'why_not_batch_norm', 'why_not_eager', 'why_not_squeeze_excite']


def has_hooks(*modules: nn.Module | None) -> bool:
    """Whether somebody waits for one of these modules to be called: by a hook, or in the place of its forward."""
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
    """Whether this is an ``nn.Conv2d`` whose output is new and seen by nobody but the caller."""
    return type(conv) is nn.Conv2d and not has_hooks(conv)


def why_not_batch_norm(bn: Any) -> str:
    """Why this is not an ``nn.BatchNorm2d`` with weight, bias and running statistics; empty if it is."""
    if type(bn) is not nn.BatchNorm2d:  # a subclass may do anything; so may a parametrised one
        return f'the norm is a {type(bn).__name__}, not a BatchNorm2d'
    if not bn.affine or bn.running_mean is None or not bn.track_running_stats:
        return 'BatchNorm has no affine parameters or no running statistics'
    return ''


def why_not_squeeze_excite(se: Any) -> str:
    """Why this does not scale by ``excite`` of the average over the map; empty if it does."""
    kind = type(se)
    if not isinstance(se, SqueezeExcite) or kind.forward is not SqueezeExcite.forward or \
            kind.squeeze is not SqueezeExcite.squeeze:
        return f'the attention is a {kind.__name__}, not known to scale by the excitation of an average'
    return '' if se.squeeze_type == 'avg' else f'the squeeze is {se.squeeze_type!r}, not the average'


def why_not_eager(x: Tensor) -> str:
    """Why operators and derivatives of our own cannot take this input; empty if they can."""
    if torch._C._are_functorch_transforms_active():
        return 'torch.func transforms the network'
    if torch.autograd.forward_ad._current_level >= 0:
        return 'forward-mode differentiation'
    if type(x) is not Tensor or x.device.type not in ('cpu', 'cuda'):
        return f'the input is a {type(x).__name__} on {x.device.type}'
    if x.ndim != 4 or x.numel() == 0:
        return f'the input has shape {tuple(x.shape)}'
    return ''


def learns(bn: nn.Module, x: Tensor) -> bool:
    """``bn.training``; while fx traces the network, what reads it whenever the graph runs, as a call of bn would."""
    if isinstance(x, torch.fx.Proxy):
        return x.tracer.create_proxy('get_attr', x.tracer.path_of_module(bn), (), {}).training  # type: ignore
    return bn.training
