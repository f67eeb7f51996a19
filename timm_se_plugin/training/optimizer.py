"""The optimizer of a run, made by timm; on request with rates by depth and values for the attention alone."""

from argparse import Namespace
from collections.abc import Iterator
from itertools import chain
from typing import Any

from timm.optim import (
    create_optimizer_v2,
    optimizer_kwargs,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import nn
from torch.optim import Optimizer

from ..placement import counted_attention

__all__ = ['make_optimizer']


def make_optimizer(model: nn.Module, options: Namespace, lr: float) -> Optimizer:
    """timm's optimizer for the parameters of a network that are not frozen.

    The learning rate of a parameter is the product of `lr`, its share by depth (``--layer-decay``) and, in the
    attention, ``--attn-lr-scale``.

    Args:
        model: the network.
        options: the run's options.
        lr: learning rate of the parameters outside the attention, in the last layer.

    Raises:
        ValueError: timm cannot make the optimizer, the optimizer needs second derivatives, or a value is given for the
            attention of a network that has none to train.
    """
    own = options.attn_weight_decay is not None or options.attn_lr_scale != 1
    if own and not counted_attention(model):
        raise ValueError(f'--attn-weight-decay and --attn-lr-scale need a network with attention, and {options.model} '
                         'has none')
    if own and not any(parameter.requires_grad for parameter in _attention_parameters(model)):
        raise ValueError(f'--attn-weight-decay and --attn-lr-scale are for attention that is trained, and --freeze '
                         f'{options.freeze} freezes it; --freeze base trains it')

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return list(_groups(model, options, lr))
    try:
        optimizer: Any = create_optimizer_v2(
            model, **optimizer_kwargs(Namespace(**{**vars(options), 'lr': lr})),
            param_group_fn=groups if own or options.layer_decay else None, **options.opt_kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f'timm cannot make the optimizer --opt {options.opt} with --opt-kwargs '
                         f'{options.opt_kwargs}: {error}; timm.optim.list_optimizers() names all') from error
    if getattr(optimizer, 'is_second_order', False):
        raise ValueError(f'--opt {options.opt} needs second derivatives, which the training does not compute; '
                         'timm.optim.list_optimizers() names other optimizers')
    return optimizer


def _attention_parameters(model: nn.Module) -> set[nn.Parameter]:
    return set(chain.from_iterable(layer.parameters() for layer in counted_attention(model).values()))


def _groups(model: nn.Module, options: Namespace, lr: float) -> Iterator[dict[str, Any]]:
    """Groups of the parameters outside the attention, then inside; each rate is a multiple of `lr`."""
    decay, attention = options.attn_weight_decay, _attention_parameters(model)
    by_depth = {'layer_decay': options.layer_decay} if options.layer_decay else {}
    make = param_groups_layer_decay if by_depth else param_groups_weight_decay
    kept: set[str] = getattr(model, 'no_weight_decay', set)()
    for is_own, weight_decay, scale in (
            (False, options.weight_decay, 1.0),
            (True, options.weight_decay if decay is None else decay, options.attn_lr_scale)):
        for group in make(model, weight_decay, no_weight_decay_list=kept, **by_depth):
            parameters = [parameter for parameter in group['params'] if (parameter in attention) == is_own]
            total = scale * group.get('lr_scale', 1.0)
            # timm's schedules start from initial_lr and multiply each rate by lr_scale; without a schedule, lr is
            # the rate.
            if parameters:
                yield {**group, 'params': parameters, 'lr': lr * total, 'initial_lr': lr, 'lr_scale': total}
