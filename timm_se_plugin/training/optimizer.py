"""The optimizer of a run, made by timm, with a weight decay and a learning rate for the attention if they are given."""

from argparse import Namespace
from typing import Any

from timm.optim import create_optimizer_v2, optimizer_kwargs, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from ..placement import counted_attention

__all__ = ['make_optimizer']


def make_optimizer(model: nn.Module, options: Namespace, lr: float) -> Optimizer:
    """timm's optimizer for the parameters of a network.

    Args:
        model: the network.
        options: of the run.
        lr: learning rate of the parameters outside the attention.

    Raises:
        ValueError: timm cannot make the optimizer, or a value for the attention of a network that has none.
    """
    own = options.attn_weight_decay is not None or options.attn_lr_scale != 1
    if own and not counted_attention(model):
        raise ValueError(f'--attn-weight-decay and --attn-lr-scale need a network with attention, and {options.model} '
                         'has none')

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return _groups(model, options, lr)
    try:
        return create_optimizer_v2(
            model, **optimizer_kwargs(Namespace(**{**vars(options), 'lr': lr})),
            param_group_fn=groups if own else None, **options.opt_kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f'timm cannot make the optimizer --opt {options.opt} with --opt-kwargs '
                         f'{options.opt_kwargs}: {error}; timm.optim.list_optimizers() names all') from error


def _groups(model: nn.Module, options: Namespace, lr: float) -> list[dict[str, Any]]:
    attention = nn.ModuleList(counted_attention(model).values())
    decay, scale, own = options.attn_weight_decay, options.attn_lr_scale, set(attention.parameters())
    others = param_groups_weight_decay(
        model, options.weight_decay, no_weight_decay_list=getattr(model, 'no_weight_decay', set)())
    for group in others:
        group['params'] = [parameter for parameter in group['params'] if parameter not in own]
    # timm's schedules multiply by lr_scale whatever they set, and start from initial_lr; without one, lr stays.
    rates = {'lr': lr * scale, 'initial_lr': lr, 'lr_scale': scale}
    return [*others, *({**group, **rates} for group in param_groups_weight_decay(
        attention, options.weight_decay if decay is None else decay))]
