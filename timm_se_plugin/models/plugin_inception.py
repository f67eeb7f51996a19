"""Names for the Inceptions: timm's three, and BN-Inception.

``<base>_plugin`` is the network, which accepts ``attn=``; ``se_<base>_plugin`` is SE-Inception: SE after each
module's concatenation, and in residual modules on the branch before it is scaled and added (SE paper, Figures 2, 3).
"""

from typing import Any

from timm.models import DefaultCfg
from torch import nn

from ..placement import AttentionSpec
from ..placement.families import FAMILIES
from ._inception import (
    CheckpointedInceptionResnetV2,
    CheckpointedInceptionV3,
    CheckpointedInceptionV4,
    without_auxiliary,
)
from ._published import Source, published_cfgs, unpublished_cfgs
from ._registry import register_variants
from .bn_inception import BnInception

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations


def _register_all() -> None:
    se = (AttentionSpec('se'),)
    register_variants(__name__, 'bn_inception', BnInception, se, unpublished_cfgs(
        input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, interpolation='bicubic', first_conv='conv1.conv',
        classifier='fc'))
    networks: tuple[tuple[str, type[nn.Module], dict[str, Any]], ...] = (
        ('inception_v3', CheckpointedInceptionV3, {'checkpoint_filter': without_auxiliary}),
        ('inception_v4', CheckpointedInceptionV4, {'feature_cfg': FAMILIES['inception_v4'].feature_cfg}),
        ('inception_resnet_v2', CheckpointedInceptionResnetV2, {}))
    for base, create, common in networks:
        source = Source(base, None)
        register_variants(__name__, base, create, se, published_cfgs(source), source, **common)


_register_all()
