"""Where attention sits in each family of networks: one table for names, flags and :func:`add_attention`.

In a residual unit attention recalibrates the branch before the addition, and elsewhere a module's output, such as the
concatenation of an Inception module (SE paper, section 3.3, Figures 2 and 3). Blocks are identified by the names of
their module and class, so the table imports nothing, and if timm renames a class, only the family of that class is
lost.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from .spec import INTEGRATIONS

__all__ = ['FAMILIES', 'RESIDUAL_BLOCKS', 'Family', 'KernelSite', 'Site', 'is_of', 'is_of_type']


def is_of(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether a module's class or one of its base classes has one of these names (``'package.module.Class'``)."""
    return any(f'{cls.__module__}.{cls.__qualname__}' in names for cls in type(module).__mro__)


def is_of_type(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether a module's class itself, not only a base class, has one of these names."""
    return f'{type(module).__module__}.{type(module).__qualname__}' in names


@dataclass(frozen=True)
class Site:
    """A tensor that attention recalibrates, in every block of a kind.

    Args:
        blocks: names of the block's classes.
        module: regular expression for the name of a module in the block; empty for the block itself.
        tensor: the module's ``'output'`` or ``'input'``; ``'slot'`` where the module is the block's own place for
            attention; ``'block'`` for timm's residual blocks, which become the package's, with every integration.
        where: a condition on the block and the module.
        empty: what a slot without attention holds: a module of this kind, or None.
    """

    blocks: tuple[str, ...]
    module: str = ''
    tensor: Literal['output', 'input', 'slot', 'block'] = 'output'
    where: Callable[[Any, Any], bool] = lambda block, module: True
    empty: type[nn.Module] | None = nn.Identity


@dataclass(frozen=True)
class KernelSite:
    """A convolution whose place a Selective Kernel takes, in every block of a kind.

    Args:
        blocks: names of the block's classes; derived classes do not count.
        conv: name of the 3x3 convolution in the block.
        norm: name of the norm after the convolution. Every branch gets a copy of the norm and of the layers below,
            which become identities in the block.
        act: name of the activation; empty if there is none.
        drop: name of a layer between norm and activation; empty if there is none.
        aa: name of an anti-aliasing layer after the activation; empty if there is none.
    """

    blocks: tuple[str, ...]
    conv: str
    norm: str
    act: str = ''
    drop: str = ''
    aa: str = ''


@dataclass(frozen=True)
class Family:
    """Networks that carry attention in the same places.

    Args:
        sites: the places for each integration.
        bases: names of timm's models, with wildcards; each gets the names ``<base>_plugin`` and ``se_<base>_plugin``.
        kernels: where a Selective Kernel may be.
        feature_cfg: the ``feature_cfg`` that timm's entrypoints give to the builder, for ``features_only``.
        checkpoint_filter: name of timm's function that converts the published weights for its network.
    """

    sites: dict[str, tuple[Site, ...]]
    bases: tuple[str, ...] = ()
    kernels: tuple[KernelSite, ...] = ()
    feature_cfg: dict[str, Any] = field(default_factory=dict)
    checkpoint_filter: str = ''

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the classes of all blocks with a site."""
        return tuple(block for sites in self.sites.values() for site in sites for block in site.blocks)

    def missing_classes(self) -> list[str]:
        """Names of timm's in this record that the installed timm does not have."""
        names = [*self.blocks, *(block for site in self.kernels for block in site.blocks), self.checkpoint_filter]
        return [name for name in names if name.startswith('timm.') and not _exists(name)]


def _exists(name: str) -> bool:
    module, _, attribute = name.rpartition('.')
    return hasattr(sys.modules.get(module), attribute)  # `import timm` imports every module of its models


def _timm(module: str, *classes: str) -> tuple[str, ...]:
    return tuple(f'timm.models.{module}.{name}' for name in classes)


def _is_activation(block: Any, module: nn.Module) -> bool:
    return not isinstance(module, nn.MaxPool2d) and not list(module.parameters())


RESIDUAL_BLOCKS = _timm('resnet', 'BasicBlock', 'Bottleneck')
_SEPARABLE = _timm('_efficientnet_blocks', 'DepthwiseSeparableConv')
_RESNET_V2 = _timm('resnetv2', 'PreActBasic', 'PreActBottleneck', 'Bottleneck')
_INCEPTION_RESNET = _timm('inception_resnet_v2', 'Block35', 'Block17', 'Block8')
_CONVNEXT = _timm('convnext', 'ConvNeXtBlock')
_SHUFFLE = ('torchvision.models.shufflenetv2.InvertedResidual',)

FAMILIES: dict[str, Family] = {
    'resnet': Family(
        {integration: (Site(RESIDUAL_BLOCKS, tensor='block'),)
         for integration in INTEGRATIONS},
        kernels=(
            KernelSite(_timm('resnet', 'BasicBlock'), 'conv1', 'bn1', 'act1', 'drop_block', 'aa'),
            KernelSite(_timm('resnet', 'Bottleneck'), 'conv2', 'bn2', 'act2', 'drop_block', 'aa'))),
    'shake_shake': Family({'standard': (Site(
        ('timm_se_plugin.models._shake_shake.ShakeShakeBlock',), 'se', 'slot'),)}),
    # At the end of the residual branch, before the concatenation; the SK paper's Table 4 does not say where its
    # comparison has SE. A Selective Kernel takes the place of the depthwise convolution and its norm.
    'shufflenetv2': Family(
        {'standard': (Site(_SHUFFLE, 'branch2'),)}, kernels=(KernelSite(_SHUFFLE, 'branch2.3', 'branch2.4'),)),
    # After each module's concatenation (SE paper, Figure 2); reductions count as modules, the stem does not.
    'inception_v3': Family({'standard': (Site(_timm(
        'inception_v3', 'InceptionA', 'InceptionB', 'InceptionC', 'InceptionD', 'InceptionE')),)}),
    'inception_v4': Family(
        {'standard': (Site(_timm(
            'inception_v4', 'InceptionA', 'ReductionA', 'InceptionB', 'ReductionB', 'InceptionC')),)},
        feature_cfg={'flatten_sequential': True}),
    'bn_inception': Family({'standard': (Site(('timm_se_plugin.models.bn_inception.BnInceptionModule',)),)}),
    # Residual modules: on the branch, before it is scaled and added (Figure 3).
    'inception_resnet_v2': Family({
        'standard': (
            Site(_timm('inception_resnet_v2', 'Mixed_5b', 'Mixed_6a', 'Mixed_7a')), Site(_INCEPTION_RESNET, 'conv2d')),
        'post': (Site(_INCEPTION_RESNET),)}),
    # After the non-linearity of each convolution (SE paper, Table 2).
    'vgg': Family(
        {'standard': (Site(_timm('vgg', 'VGG'), r'features\.\d+', where=_is_activation),)}, bases=('vgg*_bn',),
        feature_cfg={'flatten_sequential': True, 'out_indices': (0, 1, 2, 3, 4, 5)},
        checkpoint_filter='timm.models.vgg._filter_fn'),
    # After the pointwise convolution that ends a block: this place adds the 0.5 M parameters of the SE paper's Table 3.
    'mobilenetv1': Family(
        {'standard': (Site(_SEPARABLE, r'bn2\.act', where=lambda block, _: block.has_pw_act),)},
        bases=('mobilenetv1_*',), feature_cfg={'flatten_sequential': True}),
    # After the depthwise convolution (MnasNet, arXiv 1807.11626, Figure 7; MobileNetV3, arXiv 1905.02244, Figure 4).
    'mobilenetv2': Family(
        {'standard': (
            Site(_timm('_efficientnet_blocks', 'InvertedResidual', 'UniversalInvertedResidual', 'EdgeResidual'),
                 'se', 'slot'),
            Site(_SEPARABLE, 'se', 'slot', where=lambda block, _: not block.has_pw_act))},
        bases=('mobilenetv2_*',), feature_cfg={'flatten_sequential': True}),
    # The branch of a pre-activation unit ends in a convolution.
    'resnetv2': Family(
        {'standard': (
            Site(_timm('resnetv2', 'PreActBasic'), 'conv2'),
            Site(_timm('resnetv2', 'PreActBottleneck'), 'conv3'),
            Site(_timm('resnetv2', 'Bottleneck'), 'drop_path', 'input')),
         'post': (Site(_RESNET_V2),)},
        bases=('resnetv2_*',), feature_cfg={'flatten_sequential': True}),
    # As in ResNet (Res2Net, arXiv 1904.01169, Figure 3).
    'res2net': Family(
        {'standard': (Site(_timm('res2net', 'Bottle2neck'), 'se', 'slot', empty=None),)},
        bases=('res2net*', 'res2next*')),
    # After a dense block's concatenation, before the transition; the last one after its norm and activation.
    'densenet': Family(
        {'standard': (
            Site(_timm('densenet', 'DenseTransition'), tensor='input'),
            Site(_timm('densenet', 'DenseNet'), r'features\.norm5\.act'))},
        bases=('densenet*',), feature_cfg={'flatten_sequential': True},
        checkpoint_filter='timm.models.densenet._filter_torchvision_pretrained'),
    'legacy_xception': Family(
        {'standard': (Site(_timm('xception', 'Block'), 'rep'),)}, bases=('legacy_xception',),
        feature_cfg={'feature_cls': 'hook'}),
    'xception': Family(
        {'standard': (Site(_timm('xception_aligned', 'XceptionModule', 'PreXceptionModule'), r'stack\.conv3'),)},
        bases=('xception*',), feature_cfg={'flatten_sequential': True, 'feature_cls': 'hook'}),
    # On the new channels of both paths, before one part is added and the other concatenated.
    'dpn': Family(
        {'standard': (
            Site(_timm('dpn', 'DualPathBlock'), 'c1x1_c', where=lambda block, _: not block.b),
            Site(_timm('dpn', 'DualPathBlock'), 'c1x1_c[12]', where=lambda block, _: block.b))},
        bases=('dpn*',), feature_cfg={'flatten_sequential': True}),
    # RegNetY is RegNetX with SE after the 3x3 convolution (arXiv 2003.13678, section 5).
    'regnetx': Family(
        {'standard': (Site(_timm('regnet', 'Bottleneck', 'PreBottleneck'), 'se', 'slot'),)}, bases=('regnetx_*',),
        checkpoint_filter='timm.models.regnet._filter_fn'),
    # No paper defines a place in ConvNeXt; before the addition, as in every residual unit.
    'convnext': Family(
        {'standard': (Site(_CONVNEXT, 'drop_path', 'input'),),
         'pre': (Site(_CONVNEXT, 'conv_dw', 'input'),),
         'post': (Site(_CONVNEXT),),
         'identity': (Site(_CONVNEXT, 'shortcut'),),
         '3x3': (Site(_CONVNEXT, 'conv_dw'),)},
        bases=('convnext*', 'test_convnext*'), feature_cfg={'out_indices': (0, 1, 2, 3), 'flatten_sequential': True},
        checkpoint_filter='timm.models.convnext.checkpoint_filter_fn'),
}
