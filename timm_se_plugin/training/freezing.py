"""Frozen parts of a network, whose weights and running statistics a training leaves as they are."""

from itertools import chain
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..placement import counted_attention

__all__ = ['fix_statistics', 'freeze', 'moving_statistics']


def freeze(model: nn.Module, what: str) -> None:
    """Freeze a part of a network: its parameters require no gradient.

    A stage is a group of timm's ``group_matcher(coarse=True)``: in a ResNet ``layer1`` to ``layer4``, in other families
    what timm's layer decay counts as one. timm's own ``freeze`` replaces BatchNorm by another class, with other keys;
    :func:`fix_statistics` keeps the class and its statistics.

    Args:
        model: a network of timm or of the plugin.
        what: ``'backbone'`` for all but the classifier, ``'base'`` for all but the classifier and the attention, or the
            number of stages, before which the stem is frozen too; ``'0'`` is the stem alone.

    Raises:
        ValueError: ``'base'`` for a network without attention, more stages than the network has, or a number for a
            network whose stages timm does not name.
    """
    network: Any = model
    classifier = network.get_classifier()
    kept = list(classifier if isinstance(classifier, tuple) else (classifier,))
    if what.isdigit():
        if not hasattr(network, 'group_matcher'):  # as timm's MetaFormers
            raise ValueError(f'--freeze {what} counts stages, and timm does not say what the stages of this network '
                             'are; --freeze backbone freezes all but the classifier')
        groups = group_parameters(model, network.group_matcher(coarse=True))
        last = len(groups) - 2  # the last group is the classifier's
        if int(what) > last:
            raise ValueError(f'--freeze {what} is more stages than the {last} of this network; --freeze backbone '
                             'freezes all but the classifier')
        names = {name for stage in range(int(what) + 1) for name in groups[stage]}
    else:
        names = {name for name, _ in model.named_parameters()}
    if what == 'base':
        attention = list(counted_attention(model).values())
        if not attention:
            raise ValueError('--freeze base trains the classifier and the attention, and this network has none; '
                             '--freeze backbone trains the classifier alone')
        kept += attention
    trained = set(chain.from_iterable(module.parameters() for module in kept))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names or parameter in trained)


def fix_statistics(model: nn.Module) -> None:
    """Put BatchNorm layers with frozen weights into evaluation mode, which keeps their running statistics."""
    for module in model.modules():
        if _is_fixed(module):
            module.eval()


def moving_statistics(model: nn.Module) -> nn.ModuleList:
    """The layers whose running statistics training changes."""
    return nn.ModuleList([module for module in model.modules()
                          if 'running_mean' in module._buffers and not _is_fixed(module)])


def _is_fixed(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad
