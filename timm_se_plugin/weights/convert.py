"""Weights from elsewhere as the plugin's, and the plugin's as timm's, with a word on every key."""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from ..files.hub_files import SAVED_AT
from ..models._published import legacy_keys, sk_keys
from ..models.state_dicts import Misfit, StateDict, attention_misfit
from ..placement import AttentionSpec
from ..placement.sites import attention_modules
from .caffe import INPUT, caffe_keys, is_caffe
from .folders import write_model
from .mm_config import backbone_attention, backbone_config
from .reading import read_weights
from .runs import build_model

__all__ = ['Conversion', 'convert', 'convert_file', 'convert_to_timm']

# The attention of all networks that were released with these names. So is mmpretrain's style='pytorch', where a file
# does not say so.
_DECLARED = dict.fromkeys(('cadene', 'caffe', 'mmpretrain'), AttentionSpec('se'))


@dataclass(frozen=True)
class Conversion:
    """What became of every key.

    Args:
        layout: whose names the source has: ``'resnet'`` (timm's and torchvision's), ``'timm-sk'``, ``'cadene'`` (also
            timm's ``legacy_*``), ``'mmpretrain'``, ``'mmdet'`` or ``'caffe'``.
        mapped: the source's key for each of the model's.
        unused: keys of the source that are not of this network, such as a detector's head.
        missing: keys of the model that the source does not have, and that keep their initial values.
    """

    layout: str
    mapped: Mapping[str, str]
    unused: tuple[str, ...]
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f'layout {self.layout}: {len(self.mapped)} mapped, {len(self.unused)} unused, '
                 f'{len(self.missing)} missing']
        lines += [f'  {old} -> {new}' for new, old in self.mapped.items()]
        lines += [f'  {key} unused' for key in self.unused]
        return '\n'.join(lines + [f'  {key} missing, keeps its initial value' for key in self.missing])


def _renamed(layout: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a layout as ResNet's."""
    if layout == 'cadene':
        return legacy_keys(dict(keys))
    if layout == 'timm-sk':
        return sk_keys(dict(keys))
    if layout in ('mmpretrain', 'mmdet'):
        keys = {re.sub(r'^backbone\.(net\.)?', '', key): value for key, value in keys.items()}
    if layout == 'mmpretrain':
        names = {'.se_layer.conv1.conv.': '.se.fc1.', '.se_layer.conv2.conv.': '.se.fc2.', 'head.fc.': 'fc.'}
        for theirs, ours in names.items():
            keys = {key.replace(theirs, ours): value for key, value in keys.items()}
    if layout == 'mmdet':  # of the plugin layer SEPlugin in mmdet's own ResNet
        keys = {re.sub(r'^(layer\d\.\d+)\.se\w*\.', r'\1.se.', key): value for key, value in keys.items()}
    return dict(keys)


def layout_of(keys: Mapping[str, Any]) -> str:
    """Whose names they are."""
    if is_caffe(keys):
        return 'caffe'
    if any('.se_layer.' in key for key in keys) or (
            'head.fc.weight' in keys and any(key.startswith('backbone.') for key in keys)):  # timm has heads too
        return 'mmpretrain'
    if any(key.startswith('backbone.') for key in keys):
        return 'mmdet'
    if any(key.startswith('layer0.') for key in keys):
        return 'cadene'
    if any(re.match(r'layer\d\.\d+\.conv\d\.conv\.', key) for key in keys):
        return 'timm-sk'
    return 'resnet'


def convert(
        weights: StateDict, model: nn.Module, source: nn.Module | None = None, meta: Mapping[str, Any] | None = None,
) -> Conversion:
    """Load weights with other names into a model of the plugin.

    Exactly these may be missing: what counts batches, the classifier if the source has none, and all of the attention
    if the source has none and the model was made with ``attn_init='identity'``.

    Args:
        weights: what :func:`read_weights` gives.
        model: a model of the plugin; it is changed only if everything fits.
        source: the network that the weights are of. With it the two are compared, which have to compute the same;
            without it the names have to tell.
        meta: what the file says beside the weights.

    Raises:
        ValueError: keys or shapes that don't fit, or weights of a network that has the same keys and computes
            something else.
    """
    cfg: Any = model.pretrained_cfg
    layout, is_legacy = layout_of(weights), cfg['architecture'].startswith('legacy_')
    attn = AttentionSpec.of(model)
    if source is not None:
        _check_same_function(model, source, gains_attention=attn is not None and attn.init == 'identity')
    elif is_legacy != (layout in ('cadene', 'caffe')):
        raise ValueError(
            f"weights with {layout}'s names are not of {cfg['architecture']}: its keys are the same after renaming, "
            f'and its strides and pooling are not; allowed: {"cadene, caffe" if is_legacy else "a legacy_ model"}')
    backbone = backbone_config(meta or {})
    if backbone.get('style') == 'caffe' and not is_legacy:
        raise ValueError("the checkpoint's configuration says style='caffe': its strides are in the 1x1 convolutions, "
                         f"those of {cfg['architecture']} in the 3x3 ones; the keys are the same")
    given: StateDict
    if layout == 'caffe':
        given, origin = caffe_keys(weights)
    else:
        given = _renamed(layout, weights)
        origin = _renamed(layout, {key: key for key in weights})

    expected = model.state_dict()
    may_miss: set[str] = set()
    classifier = {key for key in expected if key.startswith(f"{cfg['classifier']}.")}
    if not classifier & given.keys():
        may_miss |= classifier
    prefixes = tuple(f'{name}.' for name in attention_modules(model))
    attention = {key for key in expected if prefixes and key.startswith(prefixes)}
    if attention and not attention & given.keys() and attn:
        if attn.init != 'identity':
            raise ValueError(
                f"the weights are of a network without attn={attn.attn!r}, which {cfg['architecture']} has; allowed: "
                "attn_init='identity', whose gates start at 1")
        may_miss |= attention
    elif attention & given.keys() and attn:
        _check_attention(attn, backbone_attention(backbone) if layout == 'mmdet' else _DECLARED.get(layout, attn), cfg)
    elsewhere = {key for key, old in origin.items() if _is_elsewhere(layout, old)}
    misfit = Misfit.of(given, expected, ignored=may_miss | elsewhere)
    if misfit:
        named = replace(misfit, unexpected=[origin[key] for key in misfit.unexpected])
        raise ValueError(f"weights with {layout}'s names do not fit {cfg['architecture']}: {named}")
    model.load_state_dict({**expected, **{key: given[key] for key in expected.keys() & given.keys()}})
    return Conversion(
        layout, {key: origin[key] for key in expected if key in given},
        tuple(sorted(origin[key] for key in given if key not in expected)),
        tuple(key for key in expected if key not in given))


def _check_attention(attn: AttentionSpec, weights: AttentionSpec, cfg: Mapping[str, Any]) -> None:
    different = attention_misfit(attn, weights, ignored='attn_rd_')  # shapes tell the width
    if different:
        raise ValueError(f"{cfg['architecture']} was made with another attention than the weights have: {different}")


def _is_elsewhere(layout: str, key: str) -> bool:
    """Whether a key is of another part than the network: a detector's neck and heads, mmpretrain's preprocessing."""
    return layout in ('mmdet', 'mmpretrain') and not key.startswith(('backbone.', 'head.fc.'))


def convert_to_timm(model: nn.Module, name: str) -> tuple[nn.Module, Conversion]:
    """timm's own model with the weights of the plugin's.

    Args:
        model: of the plugin.
        name: timm's.

    Raises:
        ValueError: an unknown name, other keys or shapes, or a network that computes something else.
    """
    if not timm.is_model(name) or name.endswith('_plugin'):
        raise ValueError(f'{name} is not a model of timm; allowed: a name that timm.list_models() has')
    network: Any = model
    reference = timm.create_model(name, num_classes=network.num_classes, in_chans=network.in_chans)
    names = _check_same_function(model, reference)
    state = model.state_dict()
    reference.load_state_dict({names[key]: value for key, value in state.items()})
    return reference, Conversion('resnet', {names[key]: key for key in state}, (), ())


@torch.no_grad()
def _check_same_function(model: nn.Module, reference: nn.Module, gains_attention: bool = False) -> dict[str, str]:
    """Raise ValueError unless `reference` computes what `model` does, with any weights.

    Both get the same random weights and compute the features of random images in float64, with BatchNorm in training
    mode, where it keeps all values of one size and hides no branch.

    Args:
        model: the plugin's.
        reference: the other.
        gains_attention: `model` may have attention that the other lacks; as it is, it has to change nothing.

    Returns:
        The reference's key for each of the model's.
    """
    network: Any = copy.deepcopy(model).double().eval()
    other: Any = copy.deepcopy(reference).double().eval()
    for module in (*network.modules(), *other.modules()):
        module.training = isinstance(module, nn.BatchNorm2d)
    ours, theirs = network.state_dict(), other.state_dict()
    names = _renamed(layout_of(theirs), {key: key for key in theirs})
    gained = tuple(f'{name}.' for name in attention_modules(model)) if gains_attention else ()
    mine, its = (net.pretrained_cfg['architecture'] for net in (network, other))
    given = {key: theirs[old] for key, old in names.items()}
    misfit = Misfit.of(given, ours, ignored=[key for key in ours if key.startswith(gained)])
    if misfit:
        raise ValueError(f'weights of {its} do not fit {mine}: {misfit}')
    generator = torch.Generator().manual_seed(0)
    for tensor in theirs.values():
        if tensor.is_floating_point():
            tensor.normal_(0, tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 1.0, generator=generator)
    network.load_state_dict({**ours, **{key: theirs[old] for key, old in names.items()}})
    x = torch.randn(4, network.in_chans, 96, 96, generator=generator, dtype=torch.float64)
    expected, found = (net.forward_features(x) for net in (other, network))
    if float((found - expected).abs().max()) > 1e-6 * float(expected.abs().max()):
        raise ValueError(f'{mine} and {its} have the same keys and shapes and compute something else, so weights of '
                         'one are not weights of the other')
    return names


def convert_file(
        weights: str | Path, model: str, folder: str | Path, source: str | None = None, **model_kwargs: Any,
) -> Conversion:
    """Convert a file or a saved model, and save the result as timm does, with ``conversion.json`` beside it.

    Args:
        weights: a file, or ``'local-dir:…'`` or ``'hf-hub:…'`` for a saved model, which knows what network it is of.
        model: the plugin's name to convert to, or timm's to convert a saved model back.
        folder: where to.
        source: timm's name of the network that a file's weights are of, if it is known.
        **model_kwargs: for the new model, such as ``attn='se', attn_init='identity'``; classes and input channels are
            those of the weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as :func:`convert` and :func:`convert_to_timm`.
    """
    data_config: dict[str, Any] | None
    if str(weights).startswith(SAVED_AT):
        saved: Any = timm.create_model(str(weights), pretrained=True)
        if not model.endswith('_plugin'):
            target, conversion = convert_to_timm(saved, model)
        else:
            target = timm.create_model(
                model, **{'num_classes': saved.num_classes, 'in_chans': saved.in_chans, **model_kwargs})
            conversion = convert(saved.state_dict(), target, saved)
        data_config = {key: saved.pretrained_cfg[key] for key in ('mean', 'std', 'interpolation', 'crop_pct')}
    else:
        state, meta = read_weights(weights)
        target = timm.create_model(model, **{**_sizes(state), **model_kwargs})
        original, data_config = _told(source, state, meta)
        conversion = convert(state, target, original, meta)
        if conversion.layout == 'caffe':
            data_config = INPUT
    write_model(target, folder, data_config=data_config)
    Path(folder, 'conversion.json').write_text(json.dumps(conversion.to_dict(), indent=1), encoding='utf-8')
    return conversion


def _told(
        source: str | None, weights: StateDict, meta: Mapping[str, Any],
) -> tuple[nn.Module | None, dict[str, Any] | None]:
    """The network that weights are of, by its name or by the options of a training, and its preprocessing."""
    args = dict(meta.get('args') or {})
    if source:
        args = {'model': source}
    elif not timm.is_model(str(args.get('model')).partition('.')[0]):
        return None, None
    original = build_model({**args, **_sizes(weights)})
    return original, resolve_data_config(args, model=original)


def _sizes(weights: StateDict) -> dict[str, int]:
    """Classes and input channels of a network with these weights, where its keys tell."""
    sizes = {}
    for key, tensor in weights.items():
        if re.fullmatch(r'(head\.)?(fc|last_linear)\.weight|classifier\.0', key):
            sizes['num_classes'] = tensor.flatten(0, -2).shape[0]
        elif re.fullmatch(r'(backbone\.|layer0\.)?conv1(\.0)?\.weight|conv1(_1)?/[37]x[37]_s2\.0', key):
            sizes['in_chans'] = tensor.shape[1]
    return sizes
