"""The layer behind each name of an attention, the plugin's own or timm's."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import EcaModule, EffectiveSEModule, GlobalContext, get_act_layer
from timm.layers.cbam import CbamModule
from torch import nn

from ..layers import BottleneckAttention, ConcurrentSqueezeExcite, SpatialSqueezeExcite, SqueezeExcite
from ..layers.squeeze_excite import GATES, reduced_channels

if TYPE_CHECKING:
    from .spec import AttentionSpec

__all__ = ['ATTENTION_LAYERS', 'create_attention', 'start_at_identity']

# timm's layers, and the last one in each before its gate. CBAM's spatial half ends in a norm, whose input is no zero.
_LAST_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    CbamModule: ('channel.fc2', 'spatial.conv.bn'),
    EcaModule: ('conv',),
    EffectiveSEModule: ('fc',),
    GlobalContext: ('mlp_scale.fc2',),
}
ATTENTION_LAYERS: tuple[type[nn.Module], ...] = (
    BottleneckAttention, ConcurrentSqueezeExcite, SpatialSqueezeExcite, SqueezeExcite, *_LAST_LAYERS)


def start_at_identity(layer: Any) -> None:
    """Zero what decides on the gates of an attention layer, so that they have their value at 0."""
    if type(layer) not in _LAST_LAYERS:
        layer.init_identity()
        return
    layer.init = 'identity'  # as the plugin's own layers remember it
    for name in _LAST_LAYERS[type(layer)]:
        last = layer.get_submodule(name)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)


def _width(spec: 'AttentionSpec', channels: int) -> int:
    assert spec.rd_ratio is not None  # resolved, of every attention with a width
    return spec.rd_channels or reduced_channels(channels, spec.rd_ratio, spec.rd_divisor)


# From the options that an attention has to its constructor's arguments.
_ARGUMENTS: dict[str, Callable[['AttentionSpec', int], Any]] = {
    'rd_channels': _width,
    'squeeze': lambda spec, channels: spec.squeeze,
    'act_layer': lambda spec, channels: get_act_layer(spec.act_layer),
    'gate': lambda spec, channels: spec.gate,
    'gate_layer': lambda spec, channels: GATES[str(spec.gate)],
    'bias': lambda spec, channels: spec.bias,
    'init': lambda spec, channels: spec.init,
}
_SE = ('rd_channels', 'act_layer', 'gate', 'bias', 'init')
_CONSTRUCTORS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    'se': (SqueezeExcite, (*_SE, 'squeeze')),
    'sk+se': (SqueezeExcite, (*_SE, 'squeeze')),
    'eca': (EcaModule, ('gate_layer',)),
    'ese': (EffectiveSEModule, ('gate_layer',)),
    'cbam': (CbamModule, ('rd_channels', 'act_layer', 'gate_layer')),
    'gc': (GlobalContext, ('rd_channels', 'act_layer', 'gate_layer')),
    'cse': (SqueezeExcite, _SE),
    'sse': (SpatialSqueezeExcite, ('gate', 'bias', 'init')),
    'scse': (ConcurrentSqueezeExcite, _SE),
    'bam': (BottleneckAttention, ('rd_channels', 'act_layer')),
}


def create_attention(
        spec: 'AttentionSpec',
        channels: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
) -> nn.Module:
    """Attention layer of a specification for `channels` channels. Shape: (N, C, H, W) -> (N, C, H, W)."""
    constructor, names = _CONSTRUCTORS[spec.attn]
    layer = constructor(
        channels, **{name: _ARGUMENTS[name](spec, channels) for name in names}, device=device, dtype=dtype)
    if spec.init == 'identity' and constructor in _LAST_LAYERS:
        start_at_identity(layer)
    return layer
