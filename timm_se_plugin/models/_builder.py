"""From a flag to a model: the attention asked for, checked against the weights asked for, in timm's own builder."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import timm
from timm.models import PretrainedCfg, build_model_with_cfg, resolve_pretrained_cfg
from timm.models._input import update_model_args  # private: timm exports it nowhere
from torch import nn

from ..files.hub_files import SAVED_AT
from ..placement import AttentionSpec
from ..placement.spec import ATTENTIONS, STARTS_AT_IDENTITY, applicable, is_option, split_attention_kwargs
from ._blueprint import Blueprint, blueprint
from ._networks import AttentionResNet, with_attention
from ._published import WARM_START, Source
from ._saved_weights import check_saved_weights
from .state_dicts import checkpoint_filter

__all__ = ['SAVED_AT', 'Architecture', 'build', 'is_place', 'requested', 'resolve', 'resolve_unseen']

_WEIGHT_FILES = ('.pth', '.pt', '.bin', '.safetensors')

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """What stands behind a registered name.

    Args:
        name: the plugin's model name.
        base: the timm model that it is built from; of a network that timm doesn't have, its name.
        attn: the attention it has when no flag is given; None for a plain network.
        flag_is_open: whether the flag may choose another attention (``resnet50_plugin``, not ``se_resnet50_plugin``).
        source: the published weights that fit it, if there are any.
        model_cls: builds the network, with the argument ``attn``; None for timm's class with attention put into it.
        model_args: arguments of the network that differ from the base's; without a base, all of them.
        stages: how many stages may carry attention.
        plain_source: the plain weights that its tags ``from_<tag>`` start from.
    """

    name: str
    base: str
    attn: AttentionSpec | None
    flag_is_open: bool = True
    source: Source | None = None
    model_cls: Callable[..., nn.Module] | None = AttentionResNet
    model_args: dict[str, Any] = field(default_factory=dict)
    stages: int = 4
    plain_source: Source | None = None

    @property
    def plan(self) -> Blueprint:
        """How the network is built, before anybody asks for something else."""
        if not timm.is_model(self.base):
            assert self.model_cls is not None
            return Blueprint(self.model_cls, self.base, self.model_args)
        theirs = blueprint(self.base)
        model_cls = self.model_cls or partial(with_attention, theirs.model_cls)
        # The weights are chosen here, and checked by their keys.
        args = {k: v for k, v in theirs.kwargs.items() if k not in ('pretrained_cfg', 'pretrained_strict')}
        return Blueprint(model_cls, theirs.variant, {**args, **self.model_args})


def build(arch: Architecture, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a registered model.

    Args:
        arch: what stands behind the name.
        pretrained: load the weights of the tag, or of the repository or folder that the model comes from.
        **kwargs: as for timm's entrypoints, and the ``attn`` flag with its options.

    Raises:
        ValueError: an impossible flag, option or tag, or an option that contradicts the weights asked for.
    """
    options = split_attention_kwargs(kwargs)
    merged = split_attention_kwargs(dict(kwargs.get('pretrained_model_args') or {}))
    unknown = [name for name in merged if name != 'attn' and not is_option(name)]
    if unknown:
        raise ValueError(f'the saved model has {unknown[0]}; this version of timm_se_plugin has no option {unknown[0]}')
    saved = applicable(merged)
    replaces = 'attn' in options and options['attn'] != saved.get('attn')
    for name, value in merged.items():  # by timm, into the user's own
        if (name not in saved or (replaces and name != 'attn')) and options.get(name) == value:
            del options[name]
    cfg = _pretrained_cfg(arch, kwargs.pop('pretrained_cfg', None), kwargs.pop('pretrained_cfg_overlay', None))

    attn, gains_attention = resolve(arch, options, cfg, saved) if pretrained else (requested(arch, options), False)

    plan = arch.plan
    model_args = dict(plan.kwargs)
    if 'attn' in options and plan.kwargs.get('pruned'):
        raise ValueError(f'{arch.name} was pruned together with its attention: attn is not allowed')
    placed = attn
    asked = kwargs.pop('block_args', None)
    if asked or isinstance(model_args.get('block_args'), dict):  # not every network has them
        block_args = dict(model_args.pop('block_args', None) or {})
        if 'attn' in options:
            block_args.pop('attn_layer', None)
        placed = attn if 'attn_layer' not in block_args else None  # without a flag timm's own layer stays as it is
        block_args.update(asked or {})
        if placed and 'attn_layer' in block_args:
            raise ValueError(f"block_args with 'attn_layer' is not allowed beside attn={placed.attn!r}")
        model_args['block_args'] = block_args

    source = _source(arch, cfg)
    their_filter = model_args.pop('pretrained_filter_fn', None)
    model_args.update(kwargs)
    model_args.setdefault('pretrained_filter_fn', checkpoint_filter(
        source.key_map if source else None, new_attention=gains_attention, their_filter=their_filter))

    model_cls = plan.model_cls
    if placed and placed.sites is not None and not isinstance(model_cls, partial):
        model_cls = partial(with_attention, model_cls)  # names are those of the finished network

    def built(pretrained: bool) -> nn.Module:
        theirs: dict[str, Any] = {k: model_args[k] for k in ('feature_cfg', 'block_args') if k in model_args}
        # timm writes into them, and there may be two networks to build.
        args: dict[str, Any] = {**model_args, **copy.deepcopy(theirs)}
        return build_model_with_cfg(model_cls, plan.variant, pretrained, pretrained_cfg=cfg, attn=placed, **args)

    if pretrained:
        check_saved_weights(cfg, built)
    model = built(pretrained)
    if placed:
        update_model_args(model, **placed.to_kwargs())
    elif 'attn' in options:
        update_model_args(model, attn='none')
    return model


def resolve(
        arch: Architecture, options: Mapping[str, Any], cfg: PretrainedCfg | str | None,
        saved: Mapping[str, Any] | None = None,
) -> tuple[AttentionSpec | None, bool]:
    """Attention that :func:`build` gives with weights, without loading them; and whether the weights lack it.

    Args:
        arch: what stands behind the name.
        options: the ``attn`` flag and its options.
        cfg: the weights: timm's configuration, a tag, or None for the default one.
        saved: options that a saved model was built with.

    Raises:
        ValueError: as :func:`build`.
    """
    if not isinstance(cfg, PretrainedCfg):
        cfg = _pretrained_cfg(arch, cfg, None)
    attn = requested(arch, options)
    if not _attention_is_declared(arch, cfg):
        return attn, False
    weights = _attention_of_weights(arch, cfg, saved or {})
    if weights is None and attn is not None:
        return _warm_started(arch, attn, options), True
    return _matched(arch, attn, weights, options), False


def resolve_unseen(
        arch: Architecture, options: Mapping[str, Any], pretrained: bool | str,
) -> tuple[Mapping[str, Any], bool]:
    """Options to build with before any weights are looked at, and whether the weights will lack the attention.

    Args:
        arch: what stands behind the name.
        options: the ``attn`` flag and its options.
        pretrained: whether there will be weights, a tag, or where they are: a file in the place of the default tag's,
            or a saved model (``'hf-hub:…'``, ``'local-dir:…'``). That cannot be asked now: with the flag of a plain
            name it is taken for a plain one.

    Raises:
        ValueError: as :func:`build`.
    """
    is_saved = str(pretrained).startswith(SAVED_AT)
    taken_for_plain = arch.flag_is_open and arch.attn is None and options.get('attn') == 'se'
    if not pretrained or (is_saved and not taken_for_plain):
        return options, not pretrained
    tag = pretrained if isinstance(pretrained, str) and not is_place(pretrained) else None
    attn, gains_attention = resolve(arch, options, tag)
    if attn is None or not (options or not arch.flag_is_open):
        return options, gains_attention
    return attn.to_kwargs(), gains_attention


def is_place(pretrained: str) -> bool:
    """Whether it says where weights are, and is not a tag."""
    return pretrained.startswith(SAVED_AT) or '/' in pretrained or pretrained.endswith(_WEIGHT_FILES)


def requested(arch: Architecture, options: Mapping[str, Any]) -> AttentionSpec | None:
    """Attention that the name and the flag ask for; None for none."""
    flag = options.get('attn')
    if flag is None and arch.flag_is_open:
        for name in options:
            hint = f'attn={" | ".join(ATTENTIONS)}' if is_option(name) else f"options of {arch.name}'s network"
            raise ValueError(f'{name} is not allowed without a flag; allowed: {hint}')
        return arch.attn
    if arch.attn is not None:
        if flag in (None, arch.attn.attn):
            return _on_its_stages(arch, arch.attn.updated(options), options)
        if not arch.flag_is_open:
            raise ValueError(
                f'attn={flag!r} is not allowed for {arch.name}; allowed: {arch.attn.attn} '
                f'(in {arch.base}_plugin the flag is open)')
        _logger.warning('%s carries attn=%r of its own; attn=%r replaces it', arch.name, arch.attn.attn, flag)
    if flag == 'none':
        if len(options) > 1:
            raise ValueError(f"attn='none' has no options; {', '.join(k for k in options if k != 'attn')} was given")
        return None
    return _on_its_stages(arch, AttentionSpec.from_kwargs(options), options)


def _on_its_stages(arch: Architecture, attn: AttentionSpec, options: Mapping[str, Any]) -> AttentionSpec:
    """`attn` on stages that the network has: those that the options ask for, or all."""
    if attn.sites is not None:
        return attn
    for name in {'stages', 'sk_stages'} & set(ATTENTIONS[attn.attn]):
        stages = tuple(stage for stage in getattr(attn, name) if stage <= arch.stages)
        if f'attn_{name}' in options and stages != getattr(attn, name):
            raise ValueError(
                f'attn_{name}={options[f"attn_{name}"]!r} is not allowed for {arch.name}; '
                f'allowed: one or more of {", ".join(map(str, range(1, arch.stages + 1)))}')
        found: dict[str, Any] = {name: stages}
        attn = replace(attn, **found)
    return attn


def _pretrained_cfg(arch: Architecture, cfg: Any, overlay: Any) -> PretrainedCfg:
    """timm's configuration of the weights, of a tag that exists."""
    if isinstance(cfg, str) and cfg and cfg not in _tags(arch):
        raise ValueError(f'{arch.name} has no tag {cfg!r}; allowed: {", ".join(sorted(_tags(arch) - {""})) or "none"}')
    return resolve_pretrained_cfg(arch.name, cfg, overlay)


def _tags(arch: Architecture) -> set[str]:
    return {name.partition('.')[2] for name in timm.models.get_arch_pretrained_cfgs(arch.name)}


_SAVED = ('hf-hub', 'local-dir')  # sources that come with the arguments their model was built with


def _source(arch: Architecture, cfg: PretrainedCfg) -> Source | None:
    """Where a configuration's weights come from."""
    return arch.plain_source if (cfg.tag or '').startswith(WARM_START) else arch.source


def _attention_is_declared(arch: Architecture, cfg: PretrainedCfg) -> bool:
    """Whether the weights say which attention is theirs: a tag's and a saved model's do, a user's own file doesn't."""
    return cfg.source in _SAVED or (
        _source(arch, cfg) is not None and cfg.architecture == arch.name and (cfg.tag or '') in _tags(arch))


def _attention_of_weights(arch: Architecture, cfg: PretrainedCfg, saved: Mapping[str, Any]) -> AttentionSpec | None:
    """Attention that the weights have; None for those of a plain network."""
    if cfg.source not in _SAVED:
        source = _source(arch, cfg)
        return source.attn if source else None
    if 'attn' not in saved:
        return arch.attn
    return AttentionSpec.from_kwargs(saved) if saved['attn'] != 'none' else None


def _warm_started(arch: Architecture, attn: AttentionSpec | None, options: Mapping[str, Any]) -> AttentionSpec | None:
    """Attention that a plain network's weights gain: unless told otherwise its gates start at 1."""
    if attn is None or attn.attn not in STARTS_AT_IDENTITY:
        raise ValueError(f'weights of a plain {arch.base} cannot gain attn={attn and attn.attn!r}; '
                         f'allowed: {", ".join(STARTS_AT_IDENTITY)}')
    if 'attn_init' in options:
        return attn
    if 'attn_gate' not in options:
        _logger.warning(
            "%s: the plain network's weights gain attention that changes nothing at the start (attn_init='identity', "
            "attn_gate=%r); say attn_init='identity' whenever you load a checkpoint of it by hand",
            arch.name, replace(attn, gate=None, init='identity').gate)
    return attn.updated({**options, 'attn_init': 'identity'})


def _matched(
        arch: Architecture, attn: AttentionSpec | None, weights: AttentionSpec | None, options: Mapping[str, Any],
) -> AttentionSpec | None:
    """Attention of the weights, if `options` ask for nothing else."""
    if weights is None:
        return None
    if attn is None or attn.attn != weights.attn:
        different = {'attn': (attn.attn if attn else 'none', weights.attn)}
    else:
        asked = {*options, 'attn_gate'} if options.get('attn_init') == 'identity' else options
        different = {name: values for name, values in attn.differences(weights).items() if name in asked}
    if different:
        asked_for = ', '.join(f'{name}={mine!r} (theirs: {theirs!r})' for name, (mine, theirs) in different.items())
        raise ValueError(f'the weights asked for {arch.name} belong to another attention; not allowed: {asked_for}')
    return replace(weights, fused=attn.fused) if attn else weights
