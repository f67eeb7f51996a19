"""The network behind a registered name."""

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
    """The network behind a registered name, and the published weights that fit.

    Args:
        name: the plugin's model name.
        base: the timm model that it is built from; for a network that timm doesn't have, the name without attention.
        attn: the attention that it has without ``attn=``; None for a plain network.
        accepts_attn: whether ``attn=`` may choose another attention (``resnet50_plugin``, not ``se_resnet50_plugin``).
        create: builds the network without the plugin's attention and without weights.
        model_args: arguments of `create` that differ from its defaults.
        carries: whether the network that `create` builds has `attn` already, as timm's ``seresnet50``.
        is_pruned: whether timm pruned the network together with that attention, which then cannot be replaced.
        timm_name: timm's model with the same outputs, if no attention is asked for; empty if there is none.
        stages: number of stages that may carry attention.
        source: the published weights that fit it, if there are any.
        plain_source: the weights of the plain network, which the tags ``from_<tag>`` load.
        feature_cfg: timm's ``feature_cfg``, for ``features_only``.
        checkpoint_filter: converts published weights for the network.
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
