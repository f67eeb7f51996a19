"""Where attention sits in each family of timm's networks: one table for names, flags and :func:`add_attention`.

In a residual unit it recalibrates the branch before the addition, and elsewhere a module's result, such as the
concatenation of an Inception module (SE paper, section 3.3, Figures 2 and 3).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual  # private: exported nowhere
from timm.models.convnext import ConvNeXtBlock
from timm.models.densenet import DenseNet, DenseTransition
from timm.models.dpn import DualPathBlock
from timm.models.inception_resnet_v2 import Block8, Block17, Block35, Mixed_5b, Mixed_6a, Mixed_7a
from timm.models.inception_v3 import InceptionA, InceptionB, InceptionC, InceptionD, InceptionE
from timm.models.inception_v4 import InceptionA as InceptionA4
from timm.models.inception_v4 import InceptionB as InceptionB4
from timm.models.inception_v4 import InceptionC as InceptionC4
from timm.models.inception_v4 import ReductionA, ReductionB
from timm.models.regnet import Bottleneck as RegNetBottleneck
from timm.models.regnet import PreBottleneck as RegNetPreBottleneck
from timm.models.res2net import Bottle2neck
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnetv2 import Bottleneck as BottleneckV2
from timm.models.resnetv2 import PreActBasic, PreActBottleneck
from timm.models.vgg import VGG
from timm.models.xception import Block as XceptionBlock
from timm.models.xception_aligned import PreXceptionModule, XceptionModule
from torch import nn

from .spec import INTEGRATIONS

__all__ = ['FAMILIES', 'Family', 'Site']


@dataclass(frozen=True)
class Site:
    """A tensor in every block of a kind.

    Args:
        blocks: timm's classes of the block.
        module: the module in the block, a regular expression for its name; empty for the block itself.
        tensor: the module's ``'output'`` or ``'input'``; ``'slot'`` where timm's block has a place for attention, which
            is that module; ``'block'`` where the plugin has a block of its own, with every integration.
        where: a condition on the block and the module.
        empty: what a slot without attention holds: a module of this kind, or None.
    """

    blocks: tuple[type[nn.Module], ...]
    module: str = ''
    tensor: Literal['output', 'input', 'slot', 'block'] = 'output'
    where: Callable[[Any, Any], bool] = lambda block, module: True
    empty: type[nn.Module] | None = nn.Identity


@dataclass(frozen=True)
class Family:
    """Networks that carry attention in the same places.

    Args:
        bases: names of timm's models, with wildcards; there is ``<base>_plugin`` and ``se_<base>_plugin`` of each.
        sites: for each integration the places.
        feature_cfg: how ``features_only`` finds the levels, where timm has a network of its own for them.
    """

    bases: tuple[str, ...]
    sites: dict[str, tuple[Site, ...]]
    feature_cfg: dict[str, Any] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[type[nn.Module], ...]:
        """Every kind of block that a site is in."""
        return tuple(block for sites in self.sites.values() for site in sites for block in site.blocks)


def _is_activation(block: Any, module: nn.Module) -> bool:
    return not isinstance(module, nn.MaxPool2d) and not list(module.parameters())


_ResNetV2Blocks = (PreActBasic, PreActBottleneck, BottleneckV2)
_InceptionResNetBlocks = (Block35, Block17, Block8)

FAMILIES: dict[str, Family] = {
    # Its names come from models/plugin_resnet.py, with the blocks in place from the start.
    'resnet': Family((), {
        integration: (Site((BasicBlock, Bottleneck), tensor='block'),) for integration in INTEGRATIONS}),
    # After each module's concatenation (Figure 2); the reductions are modules too, the stem is none. Their names come
    # from models/plugin_inception.py.
    'inception_v3': Family((), {'standard': (Site((
        InceptionA, InceptionB, InceptionC, InceptionD, InceptionE)),)}),
    'inception_v4': Family((), {'standard': (Site((
        InceptionA4, ReductionA, InceptionB4, ReductionB, InceptionC4)),)}),
    # Residual modules: on the branch, before it is scaled and added (Figure 3).
    'inception_resnet_v2': Family((), {
        'standard': (
            Site((Mixed_5b, Mixed_6a, Mixed_7a)),
            Site(_InceptionResNetBlocks, 'conv2d')),
        'post': (Site(_InceptionResNetBlocks),)}),
    # After the non-linearity of each convolution (SE paper, Table 2).
    'vgg': Family(('vgg*_bn',), {'standard': (Site((VGG,), r'features\.\d+', where=_is_activation),)}),
    # After the pointwise convolution that ends a block: the 0.5 M parameters more of the SE paper's Table 3 are these.
    'mobilenetv1': Family(('mobilenetv1_*',), {'standard': (
        Site((DepthwiseSeparableConv,), r'bn2\.act', where=lambda block, _: block.has_pw_act),)},
        feature_cfg={'flatten_sequential': True}),
    # After the depthwise convolution (MnasNet, arXiv 1807.11626, Figure 7; MobileNetV3, arXiv 1905.02244, Figure 4).
    'mobilenetv2': Family(('mobilenetv2_*',), {'standard': (
        Site((InvertedResidual,), 'se', 'slot'),
        Site((DepthwiseSeparableConv,), 'se', 'slot', where=lambda block, _: not block.has_pw_act))},
        feature_cfg={'flatten_sequential': True}),
    # The branch of a pre-activation unit ends in a convolution.
    'resnetv2': Family(('resnetv2_*',), {
        'standard': (
            Site((PreActBasic,), 'conv2'),
            Site((PreActBottleneck,), 'conv3'),
            Site((BottleneckV2,), 'drop_path', 'input')),
        'post': (Site(_ResNetV2Blocks),)}),
    # As in ResNet (Res2Net, arXiv 1904.01169, Figure 3).
    'res2net': Family(('res2net*', 'res2next*'), {'standard': (Site((Bottle2neck,), 'se', 'slot', empty=None),)}),
    # After a dense block's concatenation, before the transition; the last one after its norm and activation.
    'densenet': Family(('densenet*',), {'standard': (
        Site((DenseTransition,), tensor='input'), Site((DenseNet,), r'features\.norm5\.act'))}),
    'xception': Family(('xception*', 'legacy_xception'), {'standard': (
        Site((XceptionBlock,), 'rep'),
        Site((XceptionModule, PreXceptionModule), r'stack\.conv3'))}),
    # Both paths' new channels, before the one is added and the other concatenated.
    'dpn': Family(('dpn*',), {'standard': (
        Site((DualPathBlock,), 'c1x1_c', where=lambda block, _: not block.b),
        Site((DualPathBlock,), 'c1x1_c[12]', where=lambda block, _: block.b))}),
    # RegNetY is RegNetX with SE after the 3x3 convolution (arXiv 2003.13678, section 5).
    'regnetx': Family(('regnetx_*',), {'standard': (
        Site((RegNetBottleneck, RegNetPreBottleneck), 'se', 'slot'),)}),
    # No paper is known for it: before the addition, as in every residual unit.
    'convnext': Family(('convnext*', 'test_convnext*'), {
        'standard': (Site((ConvNeXtBlock,), 'drop_path', 'input'),),
        'pre': (Site((ConvNeXtBlock,), 'conv_dw', 'input'),),
        'post': (Site((ConvNeXtBlock,)),),
        'identity': (Site((ConvNeXtBlock,), 'shortcut'),),
        '3x3': (Site((ConvNeXtBlock,), 'conv_dw'),)}),
}
