"""Every name of timm's ``resnet`` module with attention by a flag, and timm's ``legacy_*`` SE networks.

- ``<base>_plugin``: the network of timm's ``<base>``; the ``attn`` flag is open.
- ``se_<base>_plugin``, ``sk_<base>_plugin``: with Squeeze-and-Excitation or Selective Kernels, for each base without
  attention of its own.
- ``legacy_<base>_plugin``: what timm's ``legacy_<base>`` computes, with ResNet's key names and features.

The module is not called ``resnet``: timm groups models by that name.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import timm
from timm.layers import SEModule
from timm.models import DefaultCfg
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.sknet import SelectiveKernelBasic, SelectiveKernelBottleneck

from ..placement import AttentionSpec
from ._blueprint import Blueprint, blueprint
from ._builder import Architecture
from ._networks import LegacyResNet
from ._published import TIMM_SE, Source, legacy_keys, published_cfgs, sk_keys, with_warm_starts, without_weights
from ._registry import register

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations

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
    'legacy_senet154': ('senet154', {'block_args': {}}),  # its attention comes from the plugin, not from the base
}

def _carried_attention(plan: Blueprint) -> AttentionSpec | None:
    """The attention of a timm network as a specification."""
    attn_layer = (plan.kwargs.get('block_args') or {}).get('attn_layer')
    if attn_layer is None:
        return None
    if isinstance(attn_layer, partial) and attn_layer.func is SEModule:
        return replace(TIMM_SE, **attn_layer.keywords)
    return {'se': TIMM_SE, 'eca': AttentionSpec('eca')}[attn_layer]


def _selective_kernels(name: str) -> AttentionSpec:
    """The SK options of a timm SK network as a specification; timm's own defaults fill in what it doesn't say."""
    options = {'rd_ratio': 1 / 16, 'rd_divisor': 8, 'split_input': True}
    return AttentionSpec('sk', **{**options, **(blueprint(name).kwargs['block_args'].get('sk_kwargs') or {})})


def _same_but_for_attention(name: str, base: str) -> bool:
    def plain(plan: Blueprint) -> dict[str, Any]:
        args = {'block_args': {}, **plan.kwargs, 'layers': tuple(plan.kwargs['layers'])}
        args.pop('zero_init_last', None)  # an initialisation is no structure
        args['block_args'] = {k: v for k, v in args['block_args'].items() if k not in ('attn_layer', 'sk_kwargs')}
        args['block'] = {SelectiveKernelBasic: BasicBlock, SelectiveKernelBottleneck: Bottleneck}.get(
            args['block'] if isinstance(args['block'], type) else None, args['block'])
        return args
    return plain(blueprint(name)) == plain(blueprint(base))


def _register(arch: Architecture, default_cfg: DefaultCfg) -> None:
    register(
        __name__, arch, default_cfg,
        f"What timm's {arch.name.removesuffix('_plugin')} computes; attention by the attn flag."
        if arch.flag_is_open else f"timm's {arch.base} with attention: {arch.attn and arch.attn.attn}.")


def _register_all() -> None:
    bases = [
        name for name in timm.list_models(module='resnet', include_tags=False)
        if timm.models.model_entrypoint(name).__module__ == 'timm.models.resnet']
    carried = {base: _carried_attention(blueprint(base)) for base in bases}
    se_networks = [
        Source(name, attn) for name, attn in carried.items()
        if attn == TIMM_SE and timm.models.is_model_pretrained(name)]
    sk_networks = [
        Source(name, _selective_kernels(name), sk_keys)
        for name in timm.list_models(module='sknet', include_tags=False)
        if timm.models.is_model_pretrained(name)]
    for base in bases:
        source = Source(base, carried[base])
        base_cfg = published_cfgs(source, classifier='fc')
        _register(Architecture(f'{base}_plugin', base, carried[base], source=source), base_cfg)
        if carried[base] is not None:
            continue
        for attn, theirs in ((AttentionSpec('se'), se_networks), (AttentionSpec('sk'), sk_networks)):
            fitting = next((source for source in theirs if _same_but_for_attention(source.timm_name, base)), None)
            cfgs = published_cfgs(fitting, classifier='fc') if fitting else without_weights(base_cfg.default)
            warm = attn.attn == 'se'
            _register(
                Architecture(
                    f'{attn.attn}_{base}_plugin', base, attn, flag_is_open=False, source=fitting,
                    plain_source=source if warm else None),
                with_warm_starts(cfgs, base_cfg) if warm else cfgs)

    _register(  # SKNet-26; SKNet-50 and -101 are sk_resnext50_32x4d_plugin and sk_resnext101_32x4d_plugin
        Architecture(
            'sk_resnext26_32x4d_plugin', 'resnext50_32x4d', AttentionSpec('sk'), flag_is_open=False,
            model_args={'layers': (2, 2, 2, 2)}),
        without_weights(default_cfgs['resnext50_32x4d_plugin'].default))

    for name, (base, model_args) in _LEGACY.items():
        source = Source(name, AttentionSpec('se'), legacy_keys)
        first_conv = timm.models.get_pretrained_cfg(base).first_conv
        _register(
            Architecture(
                f'{name}_plugin', base, AttentionSpec('se'), source=source, model_cls=LegacyResNet,
                model_args={'drop_rate': 0.2, **model_args}),  # timm's default for them
            published_cfgs(source, first_conv, classifier='fc'))


_register_all()
