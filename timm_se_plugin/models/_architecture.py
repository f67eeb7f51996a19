"""What stands behind a registered name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
from torch import nn

from ..placement import AttentionSpec
from ._published import Source
from .state_dicts import StateDict

__all__ = ['Architecture', 'timm_network']


@dataclass(frozen=True)
class Architecture:
    """What stands behind a registered name.

    Args:
        name: the plugin's model name.
        base: the timm model that it is built from; of a network that timm doesn't have, its name.
        attn: the attention it has when nothing is asked for; None for a plain network.
        accepts_attn: whether ``attn=`` may choose another attention (``resnet50_plugin``, not ``se_resnet50_plugin``).
        create: builds the network without the plugin's attention and without weights.
        model_args: arguments of `create` that differ from its defaults.
        carries: whether what `create` builds has `attn` already, as timm's ``seresnet50`` has.
        is_pruned: whether timm pruned the network together with that attention, which then cannot be replaced.
        timm_name: the model of timm that it is, number for number, when no attention is asked for; empty for none.
        stages: how many stages may carry attention.
        source: the published weights that fit it, if there are any.
        plain_source: the plain weights that its tags ``from_<tag>`` start from.
        feature_cfg: how timm's ``features_only`` finds the levels.
        checkpoint_filter: brings published weights into the network's form.
    """

    name: str
    base: str
    attn: AttentionSpec | None
    create: Callable[..., nn.Module]
    accepts_attn: bool = True
    model_args: dict[str, Any] = field(default_factory=dict)
    carries: bool = False
    is_pruned: bool = False
    timm_name: str = ''
    stages: int = 4
    source: Source | None = None
    plain_source: Source | None = None
    feature_cfg: dict[str, Any] = field(default_factory=dict)
    checkpoint_filter: Callable[..., StateDict] | None = None


def timm_network(base: str) -> Callable[..., nn.Module]:
    """Constructor of timm's network of a name, with the arguments that timm's entrypoint takes."""
    def create(**kwargs: Any) -> nn.Module:
        return timm.models.model_entrypoint(base)(pretrained=False, **kwargs)

    return create
