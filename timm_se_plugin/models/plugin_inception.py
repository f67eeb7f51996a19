"""Names for the Inceptions: timm's three, and BN-Inception.

``<base>_plugin`` is the network, which accepts ``attn=``; ``se_<base>_plugin`` is SE-Inception: SE after each
module's concatenation, and in residual modules on the branch before it is scaled and added (SE paper, Figures 2, 3).
"""

from collections import deque
from typing import Any

from timm.models import DefaultCfg, PretrainedCfg

from ..placement import AttentionSpec
from ..placement.families import FAMILIES
from ._architecture import Architecture
from ._inception import (
    CheckpointedInceptionResnetV2,
    CheckpointedInceptionV3,
    CheckpointedInceptionV4,
    without_auxiliary,
)
from ._published import Source, published_cfgs, with_warm_starts, without_weights
from ._registry import register
from .bn_inception import BnInception

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations

_BN_INCEPTION = DefaultCfg(tags=deque(['']), cfgs={'': PretrainedCfg(
    input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, interpolation='bicubic', first_conv='conv1.conv',
    classifier='fc')})


def _register(base: str, create: Any, cfgs: DefaultCfg, source: Source | None, **common: Any) -> None:
    register(
        __name__, Architecture(
            f'{base}_plugin', base, None, create, timm_name=base if source else '', source=source, **common),
        cfgs, f'{base}, with any attention by attn=.')
    register(
        __name__, Architecture(
            f'se_{base}_plugin', base, AttentionSpec('se'), create, accepts_attn=False, plain_source=source, **common),
        with_warm_starts(without_weights(cfgs.default), cfgs), f'SE-{base}.', opened=f'{base}_plugin')


def _register_all() -> None:
    _register('bn_inception', BnInception, _BN_INCEPTION, None)
    for base, create, common in (
            ('inception_v3', CheckpointedInceptionV3, {'checkpoint_filter': without_auxiliary}),
            ('inception_v4', CheckpointedInceptionV4, {'feature_cfg': FAMILIES['inception_v4'].feature_cfg}),
            ('inception_resnet_v2', CheckpointedInceptionResnetV2, {})):
        source = Source(base, None)
        _register(base, create, published_cfgs(source), source, **common)


_register_all()
