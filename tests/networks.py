"""The plugin's names, and one of them for each structure that attention meets. Computed, not typed."""

from collections.abc import Iterable
from typing import Any

import pytest
import timm
from parity import randomised
from torch import nn

from timm_se_plugin.models._networks import AttentionResNet
from timm_se_plugin.models._registry import architectures


def _arguments(name: str) -> dict[str, Any]:
    return architectures[name].plan.kwargs


def resnets() -> list[str]:
    """Names of networks whose blocks have attention from the start; tests/models/test_families.py has the others."""
    others = {name for module in ('plugin_families', 'plugin_inception')
              for name in timm.list_models(module=module, include_tags=False)}
    return sorted(architectures.keys() - others)


def _structure(name: str) -> tuple[Any, ...]:
    """What a block with attention looks like; the stem and the downsampling do not matter to it."""
    arch, args = architectures[name], _arguments(name)
    attn = arch.attn and arch.attn.attn
    if arch.flag_is_open and (attn is None or arch.model_cls is AttentionResNet):  # without a flag: timm's own blocks
        return attn, args.get('pruned')
    return (
        arch.model_cls, attn, str(args.get('block')), args.get('basic'), args.get('aa_layer'), args.get('norm_layer'),
        args.get('cardinality', 1) > 1, args.get('block_reduce_first'), args.get('stride_in_1x1'))


def one_per_structure() -> list[str]:
    """The shallowest name of each structure."""
    chosen: dict[tuple[Any, ...], str] = {}
    for name in sorted(resnets(), key=lambda name: sum(_arguments(name)['layers'])):
        chosen.setdefault(_structure(name), name)
    return sorted(chosen.values())


def parametrised_names() -> Iterable[Any]:
    """Every name; those of a structure that another name already has are slow tests."""
    quick = one_per_structure()
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in resnets()]


def shallow(name: str, **kwargs: Any) -> nn.Module:
    """The network with five blocks, which are enough for each kind, and weights that matter.

    A pruned one has no choice of depth; the widest ones get narrower.
    """
    args = _arguments(name)
    small: dict[str, Any] = {} if args.get('pruned') else {'layers': (2, 1, 1, 1)[:len(args['layers'])]}
    if args.get('channels', (0,))[0] >= 64:
        small['channels'] = tuple(width // 4 for width in args['channels'])
    model = timm.create_model(name, **{**small, **kwargs})
    return randomised(model)  # timm zeroes each last BatchNorm, and with it every branch


# Networks of few blocks; those of the other families can't be built with less.
_FEW_BLOCKS: dict[str, dict[str, Any]] = {
    'vgg': {'mlp_ratio': 1 / 64},
    'resnetv2': {'layers': (2, 1, 1, 1)},
    'res2net': {'layers': (2, 1, 1, 1)},
    'res2next': {'layers': (2, 1, 1, 1)},
    'densenet': {'block_config': (2, 2, 2, 2)},
    'dpn': {'k_sec': (2, 1, 1, 1)},
    'convnext': {'depths': (2, 1, 1, 1)},
}
# For the quick tests: the least network of each family whose depth can be chosen, or is no obstacle.
FAMILY_NAMES = (
    'bn_inception', 'convnext_atto', 'densenet121', 'dpn48b', 'inception_v3', 'legacy_xception', 'mobilenetv1_100',
    'regnetx_002', 'res2net50_26w_4s', 'resnetv2_18', 'vgg11_bn')


def few_blocks(base: str) -> dict[str, Any]:
    """Arguments that make a network of a family shallow."""
    return next((args for prefix, args in _FEW_BLOCKS.items() if base.startswith(prefix)), {})


def family_bases() -> list[str]:
    """The base of every name whose network gains attention when it is built."""
    return sorted({architectures[name].base for name in architectures.keys() - set(resnets())})
