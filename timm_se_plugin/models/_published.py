"""Which published weights fit which registered name, read from timm's registry at run time."""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
from timm.models import DefaultCfg, PretrainedCfg

from ..placement import AttentionSpec
from .state_dicts import StateDict

__all__ = [
    'TIMM_SE', 'WARM_START', 'Source', 'legacy_keys', 'published_cfgs', 'sk_keys', 'unpublished_cfgs',
    'with_warm_starts', 'without_weights',
]

WARM_START = 'from_'  # begins the tags of a plain network's weights, to which attention is added
# timm's SEModule: the reduced width is a multiple of 8.
TIMM_SE = AttentionSpec('se', rd_divisor=8)


@dataclass(frozen=True)
class Source:
    """Published weights of one timm architecture.

    Args:
        timm_name: the architecture; each of its tags is a tag of the plugin's name.
        attn: the complete specification that the weights belong to; None for a plain network.
        key_map: from the published keys to the plugin's.
    """

    timm_name: str
    attn: AttentionSpec | None
    key_map: Callable[[StateDict], StateDict] | None = None


def published_cfgs(source: Source, first_conv: str | None = None, classifier: str | None = None) -> DefaultCfg:
    """timm's pretrained configurations of a source, for a plugin name that may have other keys."""
    default_cfg = DefaultCfg()
    for name, cfg in timm.models.get_arch_pretrained_cfgs(source.timm_name).items():
        tag = name.partition('.')[2]
        default_cfg.tags.append(tag)
        default_cfg.cfgs[tag] = replace(
            cfg, first_conv=first_conv or cfg.first_conv, classifier=classifier or cfg.classifier)
        default_cfg.is_pretrained |= bool(cfg.has_weights)
    return default_cfg


def with_warm_starts(default_cfg: DefaultCfg, plain: DefaultCfg) -> DefaultCfg:
    """`default_cfg` and a tag ``from_<tag>`` for each published tag of the plain network.

    Weights of the whole network come first; a configuration without weights is kept only if there are no weights at
    all.
    """
    trained = [tag for tag in default_cfg.tags if default_cfg.cfgs[tag].has_weights]
    warm = {f'{WARM_START}{tag}': plain.cfgs[tag] for tag in plain.tags if tag and plain.cfgs[tag].has_weights}
    tags = [*trained, *warm] or list(default_cfg.tags)
    cfgs = {**default_cfg.cfgs, **warm}
    return DefaultCfg(tags=deque(tags), cfgs={tag: cfgs[tag] for tag in tags}, is_pretrained=bool(trained or warm))


def unpublished_cfgs(**cfg: Any) -> DefaultCfg:
    """Configuration of a network without published weights, from arguments of timm's ``PretrainedCfg``."""
    return DefaultCfg(tags=deque(['']), cfgs={'': PretrainedCfg(**cfg)})


def without_weights(cfg: PretrainedCfg) -> DefaultCfg:
    """Configuration of a network that shares a published one's input and structure, but has no weights of its own."""
    kept = (
        'input_size', 'pool_size', 'interpolation', 'crop_pct', 'mean', 'std', 'num_classes',
        'first_conv', 'classifier',
    )
    return unpublished_cfgs(**{name: getattr(cfg, name) for name in kept})


def sk_keys(state_dict: StateDict) -> StateDict:
    """Keys of timm's SK networks as ResNet's: timm groups the other convolutions of a block with their norms."""
    renamed = {}
    for key, value in state_dict.items():
        key = re.sub(r'^(layer\d\.\d+\.conv\d)\.conv\.', r'\1.', key)
        renamed[re.sub(r'^(layer\d\.\d+)\.conv(\d)\.bn\.', r'\1.bn\2.', key)] = value
    return renamed


def legacy_keys(state_dict: StateDict) -> StateDict:
    """Keys of timm's ``legacy_*`` networks (Cadene's names) as ResNet's; ResNet's own stay as they are."""
    deep_stem = any(key.startswith('layer0.conv2') for key in state_dict)
    stem = {
        'conv1': 'conv1.0', 'bn1': 'conv1.1', 'conv2': 'conv1.3', 'bn2': 'conv1.4', 'conv3': 'conv1.6', 'bn3': 'bn1',
    } if deep_stem else {'conv1': 'conv1', 'bn1': 'bn1'}

    def rename(key: str) -> str:
        parts = key.split('.')
        if parts[0] == 'layer0':
            parts[:2] = [stem.get(parts[1], parts[1])]
        elif parts[0] == 'last_linear':
            parts[0] = 'fc'
        return '.'.join('se' if part == 'se_module' else part for part in parts)

    return {rename(key): value for key, value in state_dict.items()}
