"""Networks for CIFAR that timm does not have, of the tables of the SE and SK papers.

- ``resnet20_cifar_plugin``, -32, -44, -56, -110: He et al., https://arxiv.org/abs/1512.03385, Table 6.
- ``resnext29_16x32d_cifar_plugin``: SKNet-29's base (SK paper, Table 5), whose kernels are 1 and 3 on such
  small images, with r = 32.
- ``resnetv2_164_cifar_plugin``, ``wide_resnet16_8_cifar_plugin``, ``shake_shake26_2x96d_cifar_plugin``: SE paper,
  Tables 4 and 5; with SE, not with SK.
- ``resnet18_cifar_plugin``, -34, -50, -101, -152: the stages and widths of the ImageNet networks after a 3x3 stem that
  keeps the size, without pooling. Public repositories have these plain and with SE; they are in no paper.

``<name>_plugin`` is plain and accepts ``attn=``; ``se_<name>_plugin`` and ``sk_<name>_plugin`` carry attention.
The input is a 32x32 image, and there are 10 classes unless ``num_classes`` says otherwise.
"""

from typing import Any

from timm.models import DefaultCfg
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from ..placement import AttentionSpec
from ._cifar_networks import CifarResNet
from ._cifar_preact import CifarResNetV2
from ._published import unpublished_cfgs
from ._registry import register_variants
from ._shake_shake import ShakeShakeBlock, ShakeShakeResNet

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations


def _register(name: str, model_cls: type[nn.Module], args: dict[str, Any], *attns: AttentionSpec) -> None:
    """Register the plain network, and one with each attention."""
    is_v2 = issubclass(model_cls, CifarResNetV2)  # timm's ResNetV2 has other key and module names
    stages = len(args['layers'])
    register_variants(
        __name__, name, model_cls, attns,
        unpublished_cfgs(
            input_size=(3, 32, 32), pool_size=(8, 8) if stages == 3 else (4, 4), num_classes=10, crop_pct=1.0,
            interpolation='bilinear', mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),  # of CIFAR-10
            first_conv='stem.conv' if is_v2 else 'conv1', classifier='head.fc' if is_v2 else 'fc'),
        model_args=args, stages=stages, feature_cfg={
            'out_indices': tuple(range(stages + 1)), **({'flatten_sequential': True} if is_v2 else {})})


def _register_all() -> None:
    stages = (1, 2, 3)
    se = AttentionSpec('se', stages=stages)
    for depth in (20, 32, 44, 56, 110):
        _register(
            f'resnet{depth}_cifar', CifarResNet,
            {'block': BasicBlock, 'layers': ((depth - 2) // 6,) * 3, 'zero_init_last': False},
            se, AttentionSpec('sk', stages=stages))
    _register(
        'resnext29_16x32d_cifar', CifarResNet,
        {'block': Bottleneck, 'layers': (3, 3, 3), 'channels': (64, 128, 256), 'cardinality': 16, 'base_width': 32,
         'stem_width': 64, 'shortcut': 'B', 'zero_init_last': False},
        se, AttentionSpec('sk', stages=stages, kernels=(1, 3), rd_ratio=1 / 32))
    for depth, block, layers in (
            (18, BasicBlock, (2, 2, 2, 2)), (34, BasicBlock, (3, 4, 6, 3)), (50, Bottleneck, (3, 4, 6, 3)),
            (101, Bottleneck, (3, 4, 23, 3)), (152, Bottleneck, (3, 8, 36, 3))):
        _register(
            f'resnet{depth}_cifar', CifarResNet,
            {'block': block, 'layers': layers, 'channels': (64, 128, 256, 512), 'stem_width': 64, 'shortcut': 'B'},
            AttentionSpec('se'), AttentionSpec('sk'))
    _register('resnetv2_164_cifar', CifarResNetV2, {'layers': (18, 18, 18), 'channels': (64, 128, 256)}, se)
    _register(
        'wide_resnet16_8_cifar', CifarResNetV2,
        {'layers': (2, 2, 2), 'channels': (128, 256, 512), 'basic': True, 'bottle_ratio': 1.0}, se)
    _register(
        'shake_shake26_2x96d_cifar', ShakeShakeResNet,
        {'block': ShakeShakeBlock, 'layers': (4, 4, 4), 'channels': (96, 192, 384), 'zero_init_last': False}, se)


_register_all()
