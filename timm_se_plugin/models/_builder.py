"""From a name and keywords to a model: timm builds its network, and one function places the attention."""

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from typing import Any

from timm.models import build_model_with_cfg
from torch import nn

from ..files.hub_files import read_config_json
from ..placement import AttentionSpec, place_attention
from ..placement.record import compare_state_dicts, record_arguments, record_origin
from ..placement.spec import applicable, is_option, split_attention_kwargs
from ..placement.surgery import run_blocks_fused, vacate_blocks
from ..placement.widths import set_widths
from ._architecture import Architecture
from ._resolution import SAVED_SOURCES, pretrained_cfg, requested, resolve, source_of
from ._saved_weights import check_saved_weights
from .state_dicts import checkpoint_filter

__all__ = ['build']

# Keywords of timm's builder that do not describe the network.
_NOT_RECORDED = ('device', 'dtype', 'cache_dir', 'features_only', 'out_indices', 'feature_cls', 'feature_cfg',
                 'pretrained_filter_fn', 'pretrained_strict')


def build(arch: Architecture, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a registered model.

    Args:
        arch: the network behind the name.
        pretrained: load the weights of the tag, or of the repository or folder that the model comes from.
        **kwargs: as for timm's entrypoints; ``attn`` with its options; and ``pruned_widths`` from the config.json of a
            pruned network.

    Raises:
        ValueError: an impossible attention, option or tag, or an option that contradicts the weights asked for.
    """
    options = split_attention_kwargs(kwargs)
    pruned_widths = kwargs.pop('pruned_widths', None)
    cfg = pretrained_cfg(arch, kwargs.pop('pretrained_cfg', None), kwargs.pop('pretrained_cfg_overlay', None))
    saved_args = kwargs.pop('pretrained_model_args', None)
    if 'pretrained_model_args' in signature(build_model_with_cfg).parameters:
        kwargs['pretrained_model_args'] = saved_args
    elif cfg.source in SAVED_SOURCES:
        # timm before 1.0.31 does not pass on the saved arguments, and adapts a first convolution of other than three
        # channels, although the saved weights have the right number already.
        saved_args = read_config_json(f'{cfg.source}:{cfg.hf_hub_id or cfg.file}').get('model_args')
        if (saved_args or {}).get('in_chans', 3) == kwargs.get('in_chans', 3):
            cfg = replace(cfg, first_conv=None)
    saved = _attention_options(saved_args or {}, options)

    attn, gains_attention = resolve(arch, options, cfg, saved) if pretrained else (requested(arch, options), False)
    if 'attn' in options and arch.is_pruned:
        raise ValueError(f'{arch.name} was pruned together with its attention, which attn cannot replace')
    block_args = kwargs.get('block_args') or {}
    if attn is not None and 'attn_layer' in block_args and ('attn' in options or not arch.accepts_attn):
        raise ValueError(f"block_args has 'attn_layer' beside attn={attn.attn!r}; leave one of them out")
    # Without `attn` timm's network keeps the attention that timm has built. A user's block_args replace all
    # of timm's own, attention included, and then the package places the attention.
    is_built = arch.carries and 'attn' not in options and kwargs.get('block_args') is None
    placed = None if is_built or 'attn_layer' in block_args else attn

    def network(**arguments: Any) -> nn.Module:
        try:
            model = arch.create(**{**arch.model_args, **arguments})
        except AttributeError as error:
            if cfg.source not in SAVED_SOURCES:
                raise
            raise ValueError(
                f'the arguments that {cfg.hf_hub_id or cfg.file} saved do not build {arch.name}: {error}') from error
        if 'attn' in options and arch.carries:
            vacate_blocks(model)
        if placed is not None:
            place_attention(model, placed)
        elif attn is None and 'attn_fused' in options:
            run_blocks_fused(model, options['attn_fused'])
        if pruned_widths is not None:
            set_widths(model, pruned_widths)
        return model

    source = source_of(arch, cfg)
    kwargs.setdefault('pretrained_filter_fn', checkpoint_filter(
        source.key_map if source else None, new_attention=gains_attention, base_filter=arch.checkpoint_filter))
    feature_cfg = kwargs.pop('feature_cfg', arch.feature_cfg)

    def built(pretrained: bool) -> nn.Module:
        return build_model_with_cfg(
            network, arch.name, pretrained, pretrained_cfg=cfg, feature_cfg=dict(feature_cfg), **kwargs)

    if pretrained:
        check_saved_weights(cfg, built, kwargs.get('cache_dir'))
    model = built(pretrained)
    record_origin(model, published=pretrained)
    record_arguments(model, **{name: value for name, value in kwargs.items()
                               if name not in (*_NOT_RECORDED, 'pretrained_model_args') and value is not None})
    if pruned_widths is not None:
        record_arguments(model, pruned_widths=pruned_widths)
    if placed is not None:
        record_arguments(model, **placed.to_kwargs())
        compare_state_dicts(model)
    elif options:
        record_arguments(model, **{**options, 'attn': 'none'})
    return model


def _attention_options(saved_args: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Attention options of a saved model. Those that timm has copied into the user's `options` are removed there."""
    merged = split_attention_kwargs(dict(saved_args))
    if merged.get('attn', 'none') != 'none':
        AttentionSpec(merged['attn'])  # raises for one that is not registered
    unknown = [name for name in merged if name != 'attn' and not is_option(name)]
    if unknown:
        raise ValueError(f'the saved model was built with {unknown[0]}, an option that this version of timm_se_plugin '
                         'does not have; install a newer one')
    saved = applicable(merged)
    replaces = 'attn' in options and options['attn'] != saved.get('attn')
    for name, value in merged.items():
        if (name not in saved or (replaces and name != 'attn')) and options.get(name) == value:
            del options[name]
    return saved
