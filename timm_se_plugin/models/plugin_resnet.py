"""Every name of timm's ``resnet`` module with attention by a keyword, and timm's ``legacy_*`` SE networks.

- ``<base>_plugin``: the network of timm's ``<base>``, which accepts ``attn=``.
- ``se_<base>_plugin``, ``sk_<base>_plugin``: with Squeeze-and-Excitation or Selective Kernels, for each base without
  attention of its own.
- ``legacy_<base>_plugin``: the outputs of timm's ``legacy_<base>``, with ResNet's key names and features.

The module is not called ``resnet``: timm groups models by that name.
"""

from typing import Any

import timm
from timm.models import DefaultCfg

from ..placement import AttentionSpec
from ._architecture import Architecture, timm_network
from ._legacy import LEGACY, legacy_network
from ._published import TIMM_SE, Source, legacy_keys, published_cfgs, sk_keys, with_warm_starts, without_weights
from ._registry import register, register_variants
from ._timm_resnets import timm_resnets

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations

# timm's trained SK networks: the network without SK, and SK's options.
_TIMM_SK: dict[str, tuple[str, dict[str, Any]]] = {
    'skresnet18': ('resnet18', {'rd_ratio': 1 / 8, 'rd_divisor': 16, 'split_input': True}),
    'skresnet34': ('resnet34', {'rd_ratio': 1 / 8, 'rd_divisor': 16, 'split_input': True}),
    'skresnext50_32x4d': ('resnext50_32x4d', {'rd_ratio': 1 / 16, 'rd_divisor': 32}),
}


def _register(arch: Architecture, default_cfg: DefaultCfg) -> None:
    accepts = f"timm's {arch.base}, with any attention by attn=."
    has = f"timm's {arch.base} with attention: {arch.attn and arch.attn.attn}."
    register(__name__, arch, default_cfg, accepts if arch.accepts_attn else has,
             opened='' if arch.accepts_attn else f'{arch.base}_plugin')


def _register_all() -> None:
    networks = timm_resnets()
    se_sources = {found.plain: Source(name, found.attn) for name, found in networks.items()
                  if found.attn == TIMM_SE and timm.models.is_model_pretrained(name)}
    sk_sources = {base: Source(name, AttentionSpec('sk', **options), sk_keys)
                  for name, (base, options) in _TIMM_SK.items()
                  if timm.is_model(name) and timm.models.is_model_pretrained(name)}
    for base, found in networks.items():
        source = Source(base, found.attn)
        base_cfg = published_cfgs(source, classifier='fc')
        _register(
            Architecture(
                f'{base}_plugin', base, found.attn, timm_network(base), carries=found.attn is not None,
                is_pruned=found.is_pruned, timm_name=base, source=source),
            base_cfg)
        if found.attn is not None:
            continue
        for attn, sources in ((AttentionSpec('se'), se_sources), (AttentionSpec('sk'), sk_sources)):
            fitting = sources.get(base)
            cfgs = published_cfgs(fitting, classifier='fc') if fitting else without_weights(base_cfg.default)
            warm = attn.record.starts_at_identity
            _register(
                Architecture(
                    f'{attn.attn}_{base}_plugin', base, attn, timm_network(base), accepts_attn=False, source=fitting,
                    plain_source=source if warm else None),
                with_warm_starts(cfgs, base_cfg) if warm else cfgs)

    register_variants(  # SKNet-26; SKNet-50 and -101 are sk_resnext50_32x4d_plugin and sk_resnext101_32x4d_plugin
        __name__, 'resnext26_32x4d', timm_network('resnext50_32x4d'), (AttentionSpec('sk'),),
        without_weights(timm.models.get_pretrained_cfg('resnext50_32x4d')), model_args={'layers': (2, 2, 2, 2)})

    for name, (base, model_args) in LEGACY.items():
        source = Source(name, AttentionSpec('se'), legacy_keys)
        first_conv = timm.models.get_pretrained_cfg(base).first_conv
        _register(
            Architecture(
                f'{name}_plugin', base, AttentionSpec('se'), legacy_network(base), model_args=model_args,
                source=source),
            published_cfgs(source, first_conv, classifier='fc'))


_register_all()
