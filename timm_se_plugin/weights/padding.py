"""Reordering of channels, from CIFAR networks whose shortcuts pad on both sides to ones whose shortcuts pad behind."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from ..models._cifar_networks import PaddedShortcut
from ..models.state_dicts import StateDict
from ..placement import AttentionSpec
from ..placement.finding import attention_keys

__all__ = ['padded_behind', 'pads_shortcuts']


def pads_shortcuts(model: nn.Module) -> bool:
    """Whether a network has shortcuts without parameters, which fill new channels with zeros."""
    return any(isinstance(module, PaddedShortcut) for module in model.modules())


def padded_behind(weights: StateDict, model: nn.Module) -> StateDict:
    """Weights of a network whose shortcuts put half of the new channels before the others, for one with all behind.

    The two networks have the same channels in each stage, in another order. In a stage of width C after one of width B,
    the first of the B channels comes after (C - B) / 2 new ones.

    Args:
        weights: weights under the model's names.
        model: the network that pads behind.

    Raises:
        ValueError: the number of new channels of a stage is odd, or the weights have attention other than SE on the
            output of a block.
    """
    network: Any = model
    attn = AttentionSpec.of(model)
    if attn and attention_keys(model) & weights.keys() and (
            attn.attn != 'se' or attn.integration not in ('standard', 'post', 'identity') or attn.sites):
        options = ', '.join(f'{name}={value!r}' for name, value in attn.to_kwargs().items()
                            if name in ('attn', 'attn_integration', 'attn_sites') and value is not None)
        raise ValueError(f"padding='both' reorders channels, which is possible for weights without attention or with "
                         f"attn='se' on a block's output, and not for those with {options}")
    order = torch.arange(network.conv1.out_channels)  # for each channel of `model`, its position in the other network
    result = dict(weights)
    for stage, first in enumerate(network.first_blocks(), 1):
        incoming = order
        if isinstance(first.downsample, PaddedShortcut):
            new, width = first.downsample.new_channels, len(order) + first.downsample.new_channels
            if new % 2:
                raise ValueError(f'stage {stage} has {new} new channels, which cannot be half before and half behind')
            old = order + new // 2
            order = torch.cat([old, torch.tensor([c for c in range(width) if c not in set(old.tolist())]).long()])
        last = 3 if hasattr(first, 'conv3') else 2
        for key, value in weights.items():
            found = re.match(rf'layer{stage}\.(\d+)\.(.+)', key)
            if found:
                into = incoming if found[1] == '0' else order
                result[key] = _reordered(found[2], value, last, into, order)
    if 'fc.weight' in weights:
        result['fc.weight'] = weights['fc.weight'][:, order]
    return result


def _reordered(name: str, value: Tensor, last: int, into: Tensor, out: Tensor) -> Tensor:
    """A tensor of a block whose input channels get the order `into`, and whose output channels the order `out`."""
    if name == 'conv1.weight':
        return value[:, into]
    if name == 'se.fc1.weight':
        return value[:, out]
    if name == f'conv{last}.weight' or name.startswith('se.fc2.') or (
            name.startswith(f'bn{last}.') and value.dim()):
        return value[out]
    return value
