"""The plugin's names, and one of them for each structure that attention meets."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import timm
from parity import randomised
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnetv2 import PreActBasic, PreActBottleneck
from torch import nn

from timm_se_plugin.layers import SelectiveKernel, SqueezeExcite
from timm_se_plugin.models._registry import architectures


def resnets() -> list[str]:
    """Names of networks with residual blocks of timm's ResNet and of the plugin's; test_families.py has the others."""
    others = {name for module in ('plugin_families', 'plugin_inception')
              for name in timm.list_models(module=module, include_tags=False)}
    return sorted(architectures.keys() - others)


@cache
def _has_timms_channels() -> set[str]:
    return set(timm.list_models(module='plugin_resnet', include_tags=False))


def few_layers(name: str) -> dict[str, Any]:
    """Arguments, of timm's network as well, that leave a network five blocks; a pruned one has no choice."""
    arch = architectures[name]
    return {} if arch.is_pruned else {'layers': (2, 1, 1, 1)[:arch.stages]}


def _few(name: str) -> dict[str, Any]:
    """The same, and narrow."""
    arch = architectures[name]
    small = few_layers(name)
    channels = arch.model_args.get('channels', (0,))
    if channels[0] >= 64:
        small['channels'] = tuple(width // 4 for width in channels)
    elif name in _has_timms_channels() and not arch.is_pruned and 'test' not in arch.base:
        small['channels'] = (32, 64, 128, 256)
    return small


@cache
def _on_meta(name: str) -> nn.Module:
    return timm.create_model(name, device='meta', **_few(name))


def _structure(name: str) -> tuple[Any, ...]:
    """What a block with attention looks like; the stem and the downsampling do not matter to it."""
    arch = architectures[name]
    attn = arch.attn and arch.attn.attn
    if arch.accepts_attn and (attn is None or arch.carries):  # as they are: timm's own blocks
        return attn, arch.is_pruned
    kinds = (BasicBlock, Bottleneck, PreActBottleneck, PreActBasic)
    blocks: list[Any] = [module for module in _on_meta(name).modules() if isinstance(module, kinds)]
    looks = {(
        type(block), type(block.conv2), type(getattr(block, 'bn1', None)), type(getattr(block, 'aa', None)),
        getattr(block.conv2, 'groups', 1) > 1, getattr(block.conv1, 'out_channels', 0) == block.conv2.out_channels,
        block.conv1.stride if isinstance(block, Bottleneck) else None)
        for block in blocks if not isinstance(block.conv1, SelectiveKernel) and not isinstance(
            block.conv2, SelectiveKernel)}
    return attn, type(_on_meta(name)), name.startswith('legacy_'), tuple(sorted(map(str, looks)))


def one_per_structure() -> list[str]:
    """The narrowest name of each structure. Building every name takes seconds, so that STRUCTURES has the result."""
    chosen: dict[tuple[Any, ...], str] = {}
    for name in sorted(resnets(), key=lambda name: sum(p.numel() for p in _on_meta(name).parameters())):
        chosen.setdefault(_structure(name), name)
    return sorted(chosen.values())


STRUCTURES = (
    'ecaresnet50d_pruned_plugin', 'ecaresnext26t_32x4d_plugin', 'legacy_senet154_plugin', 'legacy_seresnet101_plugin',
    'legacy_seresnet18_plugin', 'legacy_seresnext101_32x4d_plugin', 'resnetv2_164_cifar_plugin',
    'se_resnet101_cifar_plugin', 'se_resnet101_plugin', 'se_resnet110_cifar_plugin', 'se_resnet18_plugin',
    'se_resnet50_gn_plugin', 'se_resnetaa34d_plugin', 'se_resnetaa50_plugin', 'se_resnetblur18_plugin',
    'se_resnetblur50_plugin', 'se_resnetv2_164_cifar_plugin', 'se_resnext101_32x4d_plugin',
    'se_resnext29_16x32d_cifar_plugin', 'se_shake_shake26_2x96d_cifar_plugin', 'se_shufflenetv2_050_plugin',
    'se_test_resnet_plugin', 'se_wide_resnet16_8_cifar_plugin', 'seresnet18_plugin', 'sk_resnet110_cifar_plugin',
    'sk_shufflenetv2_050_plugin', 'sk_test_resnet_plugin')  # test_flag.py compares them with one_per_structure()
# Alone in their structure, and a minute of the quick suite together: their width is no choice.
WIDE = ('ecaresnet50d_pruned_plugin', 'legacy_senet154_plugin')


def parametrised_names() -> Iterable[Any]:
    """Every name; those of a structure that another name already has, and the widest, are slow tests."""
    quick = set(STRUCTURES) - set(WIDE)
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in resnets()]


# Of the quick structures, those that the costly ways to transform a network see: scripting, tracing, export.
TRANSFORMED = (
    'ecaresnext26t_32x4d_plugin', 'legacy_seresnet18_plugin', 'resnetv2_164_cifar_plugin', 'se_resnet50_gn_plugin',
    'se_resnetaa50_plugin', 'se_shake_shake26_2x96d_cifar_plugin', 'se_shufflenetv2_050_plugin',
    'se_test_resnet_plugin', 'se_wide_resnet16_8_cifar_plugin', 'seresnet18_plugin', 'sk_test_resnet_plugin')


def transformed_names() -> Iterable[Any]:
    """Every name; all but a quick one of each kind are slow tests."""
    return [pytest.param(name, marks=[] if name in TRANSFORMED else pytest.mark.slow) for name in resnets()]


def shallow(name: str, **kwargs: Any) -> nn.Module:
    """The network with five blocks and weights that matter."""
    model = timm.create_model(name, **{**_few(name), **kwargs})
    return randomised(model)  # timm zeroes each last BatchNorm, and with it every branch


# Networks of few blocks; those of the other families can't be built with less.
_FEW_BLOCKS: dict[str, dict[str, Any]] = {
    'vgg': {'mlp_ratio': 1 / 64},
    'resnetv2_50x1_bit': {},  # timm fixes its depth
    'resnetv2': {'layers': (2, 1, 1, 1)},
    'res2net': {'layers': (2, 1, 1, 1)},
    'res2next': {'layers': (2, 1, 1, 1)},
    'densenet': {'block_config': (2, 2, 2, 2)},
    'dpn': {'k_sec': (2, 1, 1, 1)},
    'convnext': {'depths': (2, 1, 1, 1)},
}
# For the quick tests: the least network of each family whose depth can be chosen, or is no obstacle.
FAMILY_NAMES = (
    'convnext_atto', 'densenet121', 'inception_v3', 'mobilenetv1_100', 'regnetx_002', 'res2net50_26w_4s')


def few_blocks(base: str) -> dict[str, Any]:
    """Arguments that make a network of a family shallow."""
    return next((args for prefix, args in _FEW_BLOCKS.items() if base.startswith(prefix)), {})


def family_bases() -> list[str]:
    """The base of every name whose network gains attention when it is built."""
    return sorted({architectures[name].base for name in architectures.keys() - set(resnets())})


def layers(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...] = SqueezeExcite) -> set[str]:
    """Names of the modules of a kind."""
    return {name for name, module in model.named_modules() if isinstance(module, kind)}
