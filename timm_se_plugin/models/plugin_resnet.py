"""Every name of timm's ``resnet`` module with attention by a flag, and timm's ``legacy_*`` SE networks.

- ``<base>_plugin``: the network of timm's ``<base>``; the ``attn`` flag is open.
- ``se_<base>_plugin``: with Squeeze-and-Excitation, for each base without attention of its own.
- ``legacy_<base>_plugin``: what timm's ``legacy_<base>`` computes, with ResNet's key names and features.

The module is not called ``resnet``: timm groups models by that name.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import timm
from timm.layers import SEModule
from timm.models import DefaultCfg, register_model
from torch import nn

from ..placement import AttentionSpec
from ..weights.sources import TIMM_SE, Source, legacy_keys, published_cfgs, without_weights
from ._blueprint import Blueprint, blueprint
from ._builder import Architecture, build
from ._networks import LegacyResNet

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations
architectures: dict[str, Architecture] = {}

# timm's legacy name -> the name in its resnet module that it is built from, and what differs.
_LEGACY: dict[str, tuple[str, dict[str, Any]]] = {
    'legacy_seresnet18': ('resnet18', {}),
    'legacy_seresnet34': ('resnet34', {}),
    'legacy_seresnet50': ('resnet50', {'stride_in_1x1': True}),
    'legacy_seresnet101': ('resnet101', {'stride_in_1x1': True}),
    'legacy_seresnet152': ('resnet152', {'stride_in_1x1': True}),
    'legacy_seresnext26_32x4d': ('resnext50_32x4d', {'layers': (2, 2, 2, 2)}),
    'legacy_seresnext50_32x4d': ('resnext50_32x4d', {}),
    'legacy_seresnext101_32x4d': ('resnext101_32x4d', {}),
    'legacy_senet154': ('senet154', {'block_args': {}}),  # the plugin's attention, as in the others
}


def _carried_attention(plan: Blueprint) -> AttentionSpec | None:
    """The attention of a timm network as a specification."""
    attn_layer = (plan.kwargs.get('block_args') or {}).get('attn_layer')
    if attn_layer is None:
        return None
    if isinstance(attn_layer, partial) and attn_layer.func is SEModule:
        return replace(TIMM_SE, **attn_layer.keywords)
    return {'se': TIMM_SE, 'eca': AttentionSpec('eca')}[attn_layer]


def _same_but_for_attention(one: Blueprint, other: Blueprint) -> bool:
    def plain(plan: Blueprint) -> dict[str, Any]:
        block_args = {k: v for k, v in (plan.kwargs.get('block_args') or {}).items() if k != 'attn_layer'}
        return {**plan.kwargs, 'block_args': block_args}
    return one.model_cls is other.model_cls and plain(one) == plain(other)


def _register(arch: Architecture, default_cfg: DefaultCfg) -> None:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(arch, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = arch.name
    entrypoint.__doc__ = f"timm's {arch.base}, attention {arch.attn.attn if arch.attn else 'by the attn flag'}."
    globals()[arch.name] = entrypoint  # importable, as timm's own entrypoints are
    architectures[arch.name] = arch
    default_cfgs[arch.name] = default_cfg
    register_model(entrypoint)


def _register_all() -> None:
    bases = [
        name for name in timm.list_models(module='resnet', include_tags=False)
        if timm.models.model_entrypoint(name).__module__ == 'timm.models.resnet']
    carried = {base: _carried_attention(blueprint(base)) for base in bases}
    for base in bases:
        source = Source(base, carried[base])
        base_cfg = published_cfgs(source)
        _register(Architecture(f'{base}_plugin', base, carried[base], source=source), base_cfg)
        if carried[base] is not None:
            continue
        trained = [
            name for name, attn in carried.items()
            if attn == TIMM_SE and timm.models.is_model_pretrained(name)
            and _same_but_for_attention(blueprint(name), blueprint(base))]
        se_source = Source(trained[0], TIMM_SE) if trained else None
        _register(
            Architecture(f'se_{base}_plugin', base, AttentionSpec('se'), flag_is_open=False, source=se_source),
            published_cfgs(se_source) if se_source else without_weights(base_cfg.default))

    for name, (base, model_args) in _LEGACY.items():
        source = Source(name, AttentionSpec('se'), legacy_keys)
        first_conv = timm.models.get_pretrained_cfg(base).first_conv
        _register(
            Architecture(
                f'{name}_plugin', base, AttentionSpec('se'), source=source, model_cls=LegacyResNet,
                model_args={'drop_rate': 0.2, **model_args}),  # timm's default for them
            published_cfgs(source, first_conv))


_register_all()
