"""Networks for CIFAR that timm does not have, of the tables of the SE and SK papers.

- ``resnet20_cifar_plugin``, -32, -44, -56, -110: He et al., https://arxiv.org/abs/1512.03385, Table 6.

``<name>_plugin`` is plain, with the ``attn`` flag open; ``se_<name>_plugin`` and ``sk_<name>_plugin`` carry attention.
The input is a 32x32 image, and there are 10 classes unless ``num_classes`` says otherwise.
"""

from collections import deque
from typing import Any

from timm.models import DefaultCfg, PretrainedCfg
from timm.models.resnet import BasicBlock
from torch import nn

from ..placement import AttentionSpec
from ._builder import Architecture
from ._cifar_networks import CifarResNet
from ._registry import register

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations


def _cfg() -> DefaultCfg:
    return DefaultCfg(tags=deque(['']), cfgs={'': PretrainedCfg(
        input_size=(3, 32, 32), pool_size=(8, 8), num_classes=10, crop_pct=1.0, interpolation='bilinear',
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),  # of CIFAR-10's training images
        first_conv='conv1', classifier='fc')})


def _register(name: str, model_cls: type[nn.Module], args: dict[str, Any], *attns: AttentionSpec) -> None:
    """Register the plain network, and one with each attention."""
    args = {'feature_cfg': {'out_indices': (0, 1, 2, 3)}, **args}
    for attn in (None, *attns):
        full_name = f'{attn.attn}_{name}_plugin' if attn else f'{name}_plugin'
        register(
            __name__,
            Architecture(
                full_name, name, attn, flag_is_open=attn is None, model_cls=model_cls, model_args=args, stages=3),
            _cfg(), f'{name} for 32x32 images, {attn.attn if attn else "attention by the attn flag"}.')


def _register_all() -> None:
    stages = (1, 2, 3)
    for depth in (20, 32, 44, 56, 110):
        _register(
            f'resnet{depth}_cifar', CifarResNet,
            {'block': BasicBlock, 'layers': ((depth - 2) // 6,) * 3, 'zero_init_last': False},
            AttentionSpec('se', stages=stages), AttentionSpec('sk', stages=stages))


_register_all()
