"""ShuffleNetV2, which timm does not have, from torchvision: plain, with SE and with SK (SK paper, Table 4).

- ``shufflenetv2_050_plugin``, ``shufflenetv2_100_plugin``: the widths 0.5x and 1.0x, which accept ``attn=``;
  ``se_<name>`` and ``sk_<name>`` carry attention.
"""

from collections import deque

from timm.models import DefaultCfg, PretrainedCfg

from ..placement import AttentionSpec
from ._architecture import Architecture
from ._registry import register
from ._shufflenet import ShuffleNetV2

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations

_CHANNELS = {  # ShuffleNet V2, Table 5
    'shufflenetv2_050': (24, 48, 96, 192, 1024),
    'shufflenetv2_100': (24, 116, 232, 464, 1024),
}


def _cfg() -> DefaultCfg:
    return DefaultCfg(tags=deque(['']), cfgs={'': PretrainedCfg(
        input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, interpolation='bilinear',
        first_conv='conv1.0', classifier='fc')})


def _register_all() -> None:
    stages = (1, 2, 3)
    for name, channels in _CHANNELS.items():
        for attn in (None, AttentionSpec('se', stages=stages), AttentionSpec('sk', stages=stages)):
            full_name = f'{attn.attn}_{name}_plugin' if attn else f'{name}_plugin'
            register(
                __name__,
                Architecture(
                    full_name, name, attn, ShuffleNetV2, accepts_attn=attn is None,
                    model_args={'layers': (4, 8, 4), 'channels': channels}, stages=3),
                _cfg(), f'{name}, {attn.attn if attn else "with any attention by attn="}.', opened=f'{name}_plugin')


_register_all()
