"""Conversion of other packages' weights for the plugin, and of the plugin's for timm, with a report on every key."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import nn

from ..files.hub_files import SAVED_AT, read_config_json
from ..models._published import legacy_keys
from ..models._registry import architectures
from ..models.names import check_model, keywords_of, trained_model
from ..models.state_dicts import Misfit, StateDict
from ..placement import AttentionSpec
from ..placement.finding import attention_keys
from ..placement.record import check_attention_of_weights, record_origin
from ..placement.spec import SHOWN_BY_WEIGHTS, attention_misfit
from .caffe import INPUT
from .folders import description_in, write_model
from .layouts import is_beside, is_elsewhere, layout_of, renamed, sizes, with_names, without_prefix
from .mm_config import backbone_attention, backbone_config
from .padding import padded_behind, pads_shortcuts
from .reading import read_weights
from .runs import build_model, data_config, described_run, own_arguments
from .same_function import check_same_function

__all__ = ['PADDINGS', 'Conversion', 'convert', 'convert_file', 'convert_to_timm']

# The attention of all networks that were released under these naming schemes.
_DECLARED = dict.fromkeys(('cadene', 'caffe', 'mmpretrain'), AttentionSpec('se'))

PADDINGS = ('both', 'behind')
# Entries of a saved model's configuration that say how images are prepared; the test sizes are timm's own.
_PREPROCESSING = (
    'input_size', 'test_input_size', 'interpolation', 'crop_pct', 'test_crop_pct', 'crop_mode', 'mean', 'std')


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion, key by key.

    Args:
        layout: naming scheme of the source, one of :func:`~.layouts.layout_of`.
        mapped: the source's key for each key of the model.
        unused: keys of the source that are no part of the network, such as those of a detector's head or of a loss.
        missing: keys of the model that the source lacks; they keep their initial values.
        notes: the prefix that was removed from the keys, and what was assumed of the source's network because keys and
            shapes do not show it.
    """

    layout: str
    mapped: Mapping[str, str]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The conversion as JSON-safe values."""
        return asdict(self)

    def __str__(self) -> str:
        """What a reader has to know: no key that keeps its name, and no missing counter of batches."""
        lines = [f'layout {self.layout}: {len(self.mapped)} mapped, {len(self.unused)} unused, '
                 f'{len(self.missing)} missing']
        lines += [f'  {note}' for note in self.notes]
        lines += [f'  {old} -> {new}' for new, old in self.mapped.items() if old != new]
        lines += [f'  {key} unused' for key in self.unused]
        missing = [key for key in self.missing if not key.endswith('.num_batches_tracked')]
        return '\n'.join(lines + [f'  {key} missing, keeps its initial value' for key in missing])


def convert(
        weights: StateDict, model: nn.Module, source: nn.Module | None = None, meta: Mapping[str, Any] | None = None,
        renames: Mapping[str, str] | None = None, padding: str | None = None,
) -> Conversion:
    """Load weights with other names into a model of the plugin.

    Only these keys may be missing: BatchNorm's counters; the classifier, if the source has none; and the attention, if
    the source has none and the model was made with ``attn_init='identity'``.

    Args:
        weights: weights, as :func:`read_weights` returns them.
        model: a model of the plugin, which is changed only if everything fits.
        source: the network that the weights belong to, if it is known; `model` then has to compute the same function.
            If None, the network's function is inferred from the keys.
        meta: the further entries of the file, as :func:`read_weights` returns it.
        renames: other names for parts of keys, as ``{'linear': 'fc'}``; ``''`` takes the part off.
        padding: where shortcuts without parameters put the zeros for new channels in the network of the weights:
            ``'behind'`` the others, as in this package, or ``'both'``, half before and half behind. If None,
            ``'both'`` for the names of the public CIFAR repositories, and ``'behind'`` for others.

    Raises:
        ValueError: an unknown `padding`, a rename that no key has, keys or shapes that do not fit, or weights of a
            network with the same keys that computes another function.
    """
    if padding not in (None, *PADDINGS):
        raise ValueError(f'padding={padding!r} is not one of {", ".join(PADDINGS)}')
    if padding and not pads_shortcuts(model):
        raise ValueError(f'padding={padding!r} concerns shortcuts without parameters, which {_name(model)} does not '
                         'have; leave the option out')
    beside = [key for key in weights if is_beside(key)]
    weights, prefix = _tidied(weights, meta, renames)
    layout, backbone = layout_of(weights), backbone_config(meta or {})
    _check_function(model, source, layout, backbone)
    given, origin = renamed(layout, weights)
    told = (meta or {}).get('attention')
    check_attention_of_weights(model, told)
    _check_keys(model, given, origin, layout, backbone)
    notes = [f'the prefix {prefix} of every key was removed'] if prefix else []
    if pads_shortcuts(model) and source is None:
        if padding is None:
            padding = 'both' if layout == 'pytorch-cifar' else 'behind'
            side = 'on both sides' if padding == 'both' else 'behind'
            notes.append(f'assumed that shortcuts put the zeros for new channels {side} (padding={padding!r})')
        if padding == 'both':
            given = padded_behind(given, model)
    if source is None:
        notes += _assumptions(layout, weights, None if told else AttentionSpec.of(model))
    expected = model.state_dict()
    model.load_state_dict({**expected, **{key: given[key] for key in expected.keys() & given.keys()}})
    return Conversion(
        layout, {key: origin[key] for key in expected if key in given},
        tuple(sorted([*beside, *(origin[key] for key in given if key not in expected)])),
        tuple(key for key in expected if key not in given), tuple(notes))


def _name(model: nn.Module) -> str:
    cfg: Any = model.pretrained_cfg
    return str(cfg['architecture'])


def _check_function(
        model: nn.Module, source: nn.Module | None, layout: str, backbone: Mapping[str, Any],
) -> None:
    """Raise if the network of the weights has the model's keys and computes another function."""
    name, attn = _name(model), AttentionSpec.of(model)
    arch = architectures.get(name)
    is_legacy = bool(arch and arch.source and arch.source.key_map is legacy_keys)
    if source is not None:
        check_same_function(model, source, gains_attention=attn is not None and attn.init == 'identity')
    elif is_legacy != (layout in ('cadene', 'caffe')):
        advice = 'give weights with cadene or caffe names' if is_legacy else 'convert to a legacy_ model'
        raise ValueError(f"weights with {layout}'s names are not of {name}, which has the same keys, but other strides "
                         f'and pooling; {advice}')
    if backbone.get('style') == 'caffe' and not is_legacy:
        raise ValueError("the checkpoint's configuration says style='caffe', so its network has strides in the 1x1 "
                         f'convolutions; {name} has the same keys and strides in the 3x3 convolutions')


def _check_keys(
        model: nn.Module, given: StateDict, origin: Mapping[str, str], layout: str, backbone: Mapping[str, Any],
) -> None:
    """Raise for keys or shapes that do not fit the model, whose classifier or identity attention may be missing."""
    cfg: Any = model.pretrained_cfg
    attn, expected = AttentionSpec.of(model), model.state_dict()
    classifier = {key for key in expected if key.startswith(f"{cfg['classifier']}.")}
    attention = attention_keys(model)
    may_miss = set() if classifier & given.keys() else classifier
    gains_attention = bool(attn and attention) and not attention & given.keys()
    if gains_attention:
        may_miss |= attention
    elif attn and attention:
        declared = backbone_attention(backbone) if layout == 'mmdet' else _DECLARED.get(layout, attn)
        different = attention_misfit(attn, declared, ignored=SHOWN_BY_WEIGHTS)
        if different:
            raise ValueError(f'{_name(model)} was made with another attention than the weights have: {different}')
    elsewhere = {key for key, old in origin.items() if is_elsewhere(layout, old)}
    misfit = Misfit.of(given, expected, ignored=may_miss | elsewhere)
    if misfit:
        named = replace(misfit, unexpected=[origin[key] for key in misfit.unexpected])
        raise ValueError(f"weights with {layout}'s names do not fit {_name(model)}: {named}")
    if gains_attention and attn and attn.init != 'identity':
        raise ValueError(
            f'the weights are of a network without attn={attn.attn!r}, which {_name(model)} has; make the '
            "model with attn_init='identity', whose gates start at 1")


def _tidied(
        weights: StateDict, meta: Mapping[str, Any] | None, renames: Mapping[str, str] | None,
) -> tuple[StateDict, str]:
    """Renamed weights of the network without the prefix that all keys share, and the prefix."""
    weights = {key: value for key, value in weights.items() if not is_beside(key)}
    weights, prefix = without_prefix(weights, is_detector=bool(backbone_config(meta or {})))
    return with_names(weights, renames or {}), prefix


def _assumptions(layout: str, weights: StateDict, attn: AttentionSpec | None) -> list[str]:
    """Notes on properties in which other networks with the same keys and shapes may differ."""
    found = []
    if layout in ('resnet', 'pytorch-cifar') and any('.conv3.' in key for key in weights):
        found.append('assumed that bottlenecks have their stride in the 3x3 convolution')
    if layout in ('resnet', 'pytorch-cifar') and attn is not None and attn.record.recalibrates and any(
            '.se.' in key or '.SE.' in key for key in weights):
        options = ', '.join(f'{name}={value!r}' for name, value in attn.to_kwargs().items())
        found.append(f'assumed that the attention is {options}')
    return found


def convert_to_timm(model: nn.Module, name: str, **model_kwargs: Any) -> tuple[nn.Module, Conversion]:
    """Build timm's own model with the weights of a model of the plugin.

    Args:
        model: a model of the plugin.
        name: timm's name of the same network.
        **model_kwargs: arguments of timm's model, such as ``global_pool='max'``.

    Raises:
        ValueError: timm has no such name, or timm's network has other keys or shapes or computes another function.
    """
    if not timm.is_model(name) or name in architectures:
        raise ValueError(f"{name} is not one of timm's own models, which timm.list_models() lists")
    network: Any = model
    with keywords_of(name, model_kwargs):
        reference = timm.create_model(
            name, **{'num_classes': network.num_classes, 'in_chans': network.in_chans, **model_kwargs})
    names = check_same_function(model, reference)
    state = model.state_dict()
    reference.load_state_dict({names[key]: value for key, value in state.items()})
    record_origin(reference, published=False)  # timm's tag and license are those of other weights
    return reference, Conversion('resnet', {names[key]: key for key in state}, (), ())


def convert_file(
        weights: str | Path, model: str, folder: str | Path, source: str | None = None,
        renames: Mapping[str, str] | None = None, padding: str | None = None, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, **model_kwargs: Any,
) -> Conversion:
    """Convert a file or a saved model, and save the result as timm does, with ``conversion.json`` beside it.

    Args:
        weights: a file, or a saved model (``'local-dir:…'``, ``'hf-hub:…'``), whose config.json names the network.
        model: the plugin's name of the network to convert to; or timm's name, to convert a saved model back.
        folder: the folder to write into.
        source: timm's name of the network that a file's weights belong to, if it is known.
        renames: as for :func:`convert`.
        padding: as for :func:`convert`.
        mean: means of the channels that images are normalised by, with pixels from 0 to 1, for weights whose file does
            not say them; those of the new model's name if None.
        std: standard deviations of the channels, likewise.
        **model_kwargs: arguments of the new model, such as ``attn='se', attn_init='identity'``. The defaults are the
            weights' numbers of classes and input channels, and, if a run of the same model wrote the weights, the
            attention of that run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown model or argument, a mean or deviation for other pixels, an option for files with a
            saved model, or as :func:`convert` and :func:`convert_to_timm`.
    """
    check_model(model, model_kwargs)
    given = _normalisation(mean, std)
    if str(weights).startswith(SAVED_AT):
        for option, value in (('source', source), ('rename', renames), ('padding', padding)):
            if value:
                raise ValueError(f'{option}={value!r} is for a file of weights; the config.json of {weights} says '
                                 'which network the weights belong to, so leave the option out')
        target, conversion, described, config = _from_saved(str(weights), model, model_kwargs)
    else:
        target, conversion, described, config = _from_file(weights, model, source, renames, padding, model_kwargs)
    channels = getattr(target, 'in_chans', 3)
    for name, values in given.items():
        if len(values) != channels:
            raise ValueError(f'{name}={values} has {len(values)} values, and the images of {model} have {channels} '
                             'channels')
    cfg: Any = target.pretrained_cfg
    assumed = [f'{name} {cfg[name]}' for name in ('mean', 'std') if config is None and name not in given]
    if assumed:
        conversion = replace(conversion, notes=(
            *conversion.notes, f'assumed that images are normalised by {" and ".join(assumed)}'))
    write_model(target, folder, described, {**(config or {}), **given} or None)
    Path(folder, 'conversion.json').write_text(json.dumps(conversion.to_dict(), indent=1), encoding='utf-8')
    return conversion


def _normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
    """What is given of the means and deviations that images are normalised by."""
    given = {name: tuple(values) for name, values in (('mean', mean), ('std', std)) if values}
    if not all(abs(value) <= 1 for value in given.get('mean', ())) or not all(
            0 < value <= 1 for value in given.get('std', ())):
        told = ' and '.join(f'{name}={values}' for name, values in given.items())
        raise ValueError(f'{told} is not for pixels from 0 to 1; divide numbers for pixels from 0 to 255, such as '
                         'those of OpenMMLab, by 255')
    return given


# The new network, how its weights were found, what config.json says of its classes and pictures, and the preprocessing
# (None if unknown).
_Converted = tuple[nn.Module, Conversion, dict[str, Any], dict[str, Any] | None]


def _from_saved(place: str, model: str, model_kwargs: Mapping[str, Any]) -> _Converted:
    """A saved model as `model`, a name of the plugin or of timm."""
    saved: Any = trained_model(place)
    if model not in architectures:
        target, conversion = convert_to_timm(saved, model, **model_kwargs)
    else:
        with keywords_of(model, model_kwargs):
            target = timm.create_model(
                model, **{'num_classes': saved.num_classes, 'in_chans': saved.in_chans, **model_kwargs})
        conversion = convert(saved.state_dict(), target, saved)
    return (target, conversion, description_in(read_config_json(place), target),
            {key: saved.pretrained_cfg[key] for key in _PREPROCESSING if key in saved.pretrained_cfg})


def _from_file(
        weights: str | Path, model: str, source: str | None, renames: Mapping[str, str] | None, padding: str | None,
        model_kwargs: Mapping[str, Any],
) -> _Converted:
    """A file's weights in the plugin's `model`; the other arguments are those of :func:`convert_file`."""
    state, meta = read_weights(weights)
    tidied, _ = _tidied(state, meta, renames)
    numbers = sizes(tidied, timm.models.get_pretrained_cfg(model) or PretrainedCfg())
    with keywords_of(model, model_kwargs):
        target = timm.create_model(model, **{**numbers, **own_arguments(meta, model, model_kwargs)})
    original, config = _source_of(source, numbers, meta)
    conversion = convert(state, target, original, meta, renames, padding)
    described = described_run(meta.get('args') or {}, meta.get('label_names'), target)
    return target, conversion, described, INPUT if conversion.layout == 'caffe' else config


def _source_of(
        source: str | None, numbers: Mapping[str, int], meta: Mapping[str, Any],
) -> tuple[nn.Module | None, dict[str, Any] | None]:
    """The network of the weights, by name or by the options of a training, and its preprocessing; None if unknown."""
    args, kept = dict(meta.get('args') or {}), meta.get('model_config')
    if source:
        args, kept = {'model': source}, None
    elif not kept and not timm.is_model(str(args.get('model')).partition('.')[0]):
        return None, None
    original = build_model({**args, **numbers}, kept)
    return original, data_config(args, original)
