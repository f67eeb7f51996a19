"""The attention that follows from a name, the keywords and the weights."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
from timm.models import PretrainedCfg, resolve_pretrained_cfg

from ..files.hub_files import SAVED_AT
from ..placement import ATTENTIONS, AttentionSpec
from ..placement.attentions import names_that_start_at_identity
from ..placement.spec import is_option
from ..placement.surgery import check_stages
from ._architecture import Architecture
from ._published import WARM_START, Source

__all__ = ['SAVED_SOURCES', 'is_place', 'pretrained_cfg', 'requested', 'resolve', 'resolve_unseen', 'source_of']

SAVED_SOURCES = ('hf-hub', 'local-dir')  # sources of weights with a config.json, which has the model's arguments
_WEIGHT_FILES = ('.pth', '.pt', '.bin', '.safetensors')

_logger = logging.getLogger(__name__)


def requested(arch: Architecture, options: Mapping[str, Any]) -> AttentionSpec | None:
    """Attention that a name and the keywords ask for; None for a plain network.

    Args:
        arch: the network behind the name.
        options: ``attn`` and its options.

    Raises:
        ValueError: an option without ``attn`` (except ``attn_fused``, which plain residual blocks accept too), or an
            attention that the name does not accept.
    """
    attn = options.get('attn')
    if arch.accepts_attn and options.keys() <= {'attn', 'attn_fused'} and (
            attn == 'none' or (attn is None and arch.attn is None)):
        return None
    if attn is None and arch.accepts_attn:
        if options:
            name = next(iter(options))
            hint = (f'say which attention with attn={" | ".join(ATTENTIONS)}' if is_option(name)
                    else f'{arch.name} has no such argument')
            raise ValueError(f'{name} is given without attn; {hint}')
        return arch.attn
    if arch.attn is not None:
        if attn in (None, arch.attn.attn):
            return check_stages(arch.attn.updated(options), arch.stages, options)
        if not arch.accepts_attn:
            raise ValueError(f'{arch.name} has attn={arch.attn.attn!r}, not {attn!r}; {arch.base}_plugin accepts any')
        _logger.warning('%s carries attn=%r of its own; attn=%r replaces it', arch.name, arch.attn.attn, attn)
    if attn == 'none':
        if len(options) > 1:
            raise ValueError(f"attn='none' has no options; given: {', '.join(k for k in options if k != 'attn')}")
        return None
    return check_stages(AttentionSpec.from_kwargs(options), arch.stages, options)


def resolve(
        arch: Architecture, options: Mapping[str, Any], cfg: PretrainedCfg | str | None,
        saved: Mapping[str, Any] | None = None,
) -> tuple[AttentionSpec | None, bool]:
    """Attention of a network with weights, which are not loaded, and whether the weights lack it.

    Args:
        arch: the network behind the name.
        options: ``attn`` and its options.
        cfg: the weights: timm's configuration, a tag, or None for the default one.
        saved: options that a saved model was built with.

    Raises:
        ValueError: as :func:`requested`; an unknown tag; or options that contradict the weights.
    """
    if not isinstance(cfg, PretrainedCfg):
        cfg = pretrained_cfg(arch, cfg, None)
    attn = requested(arch, options)
    if not _declares_attention(arch, cfg):
        return attn, False
    weights = _attention_of_weights(arch, cfg, saved or {})
    if weights is None and attn is not None:
        return _warm_started(arch, attn, options), True
    return _matched(arch, attn, weights, options), False


def resolve_unseen(
        arch: Architecture, options: Mapping[str, Any], pretrained: bool | str,
) -> tuple[Mapping[str, Any], bool]:
    """Options to build with before any weights are read, and whether the weights will lack the attention.

    Args:
        arch: the network behind the name.
        options: ``attn`` and its options.
        pretrained: whether there will be weights, a tag, or their location: a file that replaces the default tag's,
            or a saved model (``'hf-hub:…'``, ``'local-dir:…'``). A saved model is not read here: if the name is that of
            a plain network and ``attn='se'``, its weights are assumed to be plain.

    Raises:
        ValueError: as :func:`resolve`.
    """
    is_saved = str(pretrained).startswith(SAVED_AT)
    taken_for_plain = arch.accepts_attn and arch.attn is None and options.get('attn') == 'se'
    if not pretrained or (is_saved and not taken_for_plain):
        return options, not pretrained
    tag = pretrained if isinstance(pretrained, str) and not is_place(pretrained) else None
    attn, gains_attention = resolve(arch, options, tag)
    if attn is None or not (options or not arch.accepts_attn):
        return options, gains_attention
    return attn.to_kwargs(), gains_attention


def is_place(pretrained: str) -> bool:
    """Whether a value of ``pretrained`` is the location of weights and not a tag."""
    return pretrained.startswith(SAVED_AT) or '/' in pretrained or pretrained.endswith(_WEIGHT_FILES)


def pretrained_cfg(arch: Architecture, cfg: Any, overlay: Any) -> PretrainedCfg:
    """timm's configuration of the weights; raises ValueError for an unknown tag."""
    if isinstance(cfg, str) and cfg and cfg not in _tags(arch):
        tags = ', '.join(sorted(_tags(arch) - {''}))
        raise ValueError(f'{arch.name} has no tag {cfg!r}; its tags are {tags or "none"}')
    return resolve_pretrained_cfg(arch.name, cfg, overlay)


def _tags(arch: Architecture) -> set[str]:
    return {name.partition('.')[2] for name in timm.models.get_arch_pretrained_cfgs(arch.name)}


def source_of(arch: Architecture, cfg: PretrainedCfg) -> Source | None:
    """The published weights that a configuration loads."""
    return arch.plain_source if (cfg.tag or '').startswith(WARM_START) else arch.source


def _declares_attention(arch: Architecture, cfg: PretrainedCfg) -> bool:
    """Whether the attention of the weights is known: for a tag and a saved model, but not for a user's own file."""
    return cfg.source in SAVED_SOURCES or (
        source_of(arch, cfg) is not None and cfg.architecture == arch.name and (cfg.tag or '') in _tags(arch))


def _attention_of_weights(arch: Architecture, cfg: PretrainedCfg, saved: Mapping[str, Any]) -> AttentionSpec | None:
    """Attention that the weights have; None for those of a plain network."""
    if cfg.source not in SAVED_SOURCES:
        source = source_of(arch, cfg)
        return source.attn if source else None
    if 'attn' not in saved:
        return arch.attn
    return AttentionSpec.from_kwargs(saved) if saved['attn'] != 'none' else None


def _warm_started(arch: Architecture, attn: AttentionSpec, options: Mapping[str, Any]) -> AttentionSpec:
    """Attention that is added to a plain network's weights; unless the options say otherwise, all gates start at 1."""
    able = names_that_start_at_identity()
    if attn.attn not in able:
        raise ValueError(f'weights of a plain {arch.base} cannot gain attn={attn.attn!r}, which cannot start without a '
                         f'change of the output; choose one of {", ".join(able)}')
    if 'attn_init' in options:
        return attn
    if 'attn_gate' not in options:
        _logger.warning(
            "%s: the plain network's weights get attention that changes nothing at the start (attn_init='identity', "
            "attn_gate=%r); give attn_init='identity' again whenever you load a checkpoint of this network yourself",
            arch.name, replace(attn, gate=None, init='identity').gate)
    return attn.updated({**options, 'attn_init': 'identity'})


def _matched(
        arch: Architecture, attn: AttentionSpec | None, weights: AttentionSpec | None, options: Mapping[str, Any],
) -> AttentionSpec | None:
    """The attention of the weights; raises ValueError if `options` ask for another."""
    if weights is None:
        return None
    if attn is None or attn.attn != weights.attn:
        different = {'attn': (attn.attn if attn else 'none', weights.attn)}
    else:
        asked = {*options, 'attn_gate'} if options.get('attn_init') == 'identity' else options
        different = {name: values for name, values in attn.differences(weights).items() if name in asked}
    if different:
        listed = ', '.join(f'{name}={asked!r} (the weights have {has!r})' for name, (asked, has) in different.items())
        raise ValueError(f'the weights asked for {arch.name} belong to another attention: {listed}')
    return replace(weights, fused=attn.fused) if attn else weights
