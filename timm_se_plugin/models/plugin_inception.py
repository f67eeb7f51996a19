"""Names for the Inceptions: timm's three, and BN-Inception.

``<base>_plugin`` is the network, with the ``attn`` flag open; ``se_<base>_plugin`` is SE-Inception: SE after each
module's concatenation, and in residual modules on the branch before it is scaled and added (SE paper, Figures 2, 3).
"""

from collections import deque
from typing import Any

from timm.models import DefaultCfg, PretrainedCfg

from ..placement import AttentionSpec
from ._builder import Architecture
from ._inception import (
    AttentionInceptionResnetV2,
    AttentionInceptionV3,
    AttentionInceptionV4,
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


def _register(base: str, model_cls: Any, cfgs: DefaultCfg, source: Source | None, **model_args: Any) -> None:
    register(
        __name__, Architecture(f'{base}_plugin', base, None, source=source, model_cls=model_cls, model_args=model_args),
        cfgs, f'{base}; attention by the attn flag.')
    register(
        __name__, Architecture(
            f'se_{base}_plugin', base, AttentionSpec('se'), flag_is_open=False, plain_source=source,
            model_cls=model_cls, model_args=model_args),
        with_warm_starts(without_weights(cfgs.default), cfgs), f'SE-{base}.')


def _register_all() -> None:
    _register('bn_inception', BnInception, _BN_INCEPTION, None)
    for base, model_cls, model_args in (
            ('inception_v3', AttentionInceptionV3, {'pretrained_filter_fn': without_auxiliary}),
            ('inception_v4', AttentionInceptionV4, {}),
            ('inception_resnet_v2', AttentionInceptionResnetV2, {})):
        source = Source(base, None)
        _register(base, model_cls, published_cfgs(source), source, **model_args)


_register_all()
