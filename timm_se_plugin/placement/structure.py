"""A copy of a network on the meta device, without memory for values, and a pass that only computes shapes."""

import copy
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from .recalibration import is_attention_hook

__all__ = ['check_network', 'choose_fused', 'image_size', 'run_structure', 'structure_of']


def check_network(model: object) -> None:
    """Refuse what is no network, such as its name or its weights.

    Raises:
        ValueError: `model` is not a ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        name = repr(model if isinstance(model, str) else 'resnet50')
        raise ValueError(f'a network is needed (torch.nn.Module), not a value of the type {type(model).__name__}; '
                         f'build it first, for instance with timm.create_model({name}), and load weights into it')


def image_size(model: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of a network's images: ``input_size`` of timm's configuration, or (3, 224, 224) without one.

    Where the network was made with an argument ``img_size``, as a ViT can be, this size is taken instead.
    """
    cfg: Any = getattr(model, 'pretrained_cfg', None) or {}
    channels, height, width = cfg.get('input_size') or (3, 224, 224)
    size = getattr(model, '_model_args', {}).get('img_size') or (height, width)
    height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(model, 'in_chans', channels)), height, width


def structure_of(model: nn.Module) -> nn.Module:
    """Copy of a network on the meta device, in evaluation mode, that shares nothing with the network.

    A pass through the copy neither changes the network (a counter of batches, a tensor kept in an attribute) nor calls
    a user's hooks; the package's own hooks, which call attention, stay. ``attn_fused=True``, which would refuse a pass
    without values, is ``'auto'`` in the copy.

    Raises:
        ValueError: a network that Python cannot copy.
    """
    memo: dict[int, Any] = {}
    with torch.no_grad():
        for tensor in chain(model.parameters(), model.buffers(), _tensors_in_attributes(model)):
            bare = torch.empty_like(tensor.detach(), device='meta')
            memo[id(tensor)] = nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare
    try:
        structure = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f'{type(model).__name__} cannot be copied ({error}), and its structure is examined in a copy') from error
    choose_fused(structure)
    for module in structure.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not is_attention_hook(hook)]:
                del hooks[key]
    structure.eval()  # not chained, since a backbone of MMDetection returns None
    return structure


def choose_fused(model: nn.Module) -> None:
    """Let the blocks that have to run by the fused path run by it only where they can."""
    for module in model.modules():
        if getattr(module, 'fused', None) is True:
            module.fused = 'auto'  # type: ignore[assignment]


def _tensors_in_attributes(model: nn.Module) -> list[Tensor]:
    """Tensors that modules keep as plain attributes, which deepcopy refuses where they have a history."""
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]


@torch.no_grad()
def run_structure(structure: nn.Module, input_size: tuple[int, int, int]) -> Any:
    """The output of the copy that :func:`structure_of` makes, for one image.

    Args:
        structure: the copy.
        input_size: (C, H, W).

    Raises:
        ValueError: `input_size` is not three positive integers, or the network does not accept such an image.
    """
    size: Any = input_size
    is_sized = isinstance(size, list | tuple) and len(size) == 3
    if not is_sized or not all(isinstance(n, Integral) and int(n) > 0 for n in size):
        raise ValueError(f'input_size={input_size!r} is not (C, H, W), such as (3, 224, 224)')
    dtype = next((tensor.dtype for tensor in structure.parameters() if tensor.is_floating_point()), None)
    try:
        return structure(torch.empty(1, *input_size, device='meta', dtype=dtype))
    except Exception as error:  # a network may raise anything
        raise ValueError(f'{type(structure).__name__} does not take an image of {tuple(input_size)} on the meta device '
                         f'({error}); give the input_size that it takes, or the part of the network that takes one '
                         'batch of images') from error
