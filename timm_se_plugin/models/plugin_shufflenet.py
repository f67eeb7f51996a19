"""ShuffleNetV2, which timm does not have, from torchvision: plain, with SE and with SK (SK paper, Table 4).

- ``shufflenetv2_050_plugin``, ``shufflenetv2_100_plugin``: the widths 0.5x and 1.0x, which accept ``attn=``;
  ``se_<name>`` and ``sk_<name>`` carry attention.
"""

from timm.models import DefaultCfg

from ..placement import AttentionSpec
from ._published import unpublished_cfgs
from ._registry import register_variants
from ._shufflenet import ShuffleNetV2

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations

_CHANNELS = {  # ShuffleNet V2, Table 5
    'shufflenetv2_050': (24, 48, 96, 192, 1024),
    'shufflenetv2_100': (24, 116, 232, 464, 1024),
}


def _register_all() -> None:
    stages = (1, 2, 3)
    for name, channels in _CHANNELS.items():
        register_variants(
            __name__, name, ShuffleNetV2, (AttentionSpec('se', stages=stages), AttentionSpec('sk', stages=stages)),
            unpublished_cfgs(
                input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, interpolation='bilinear',
                first_conv='conv1.0', classifier='fc'),
            model_args={'layers': (4, 8, 4), 'channels': channels}, stages=3)


_register_all()
