"""A model as a folder in timm's format."""

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from timm.utils import unwrap_model
from torch import nn

from ..files.hub_files import CONFIG, FOLDER, WEIGHTS, read_config_json
from ..files.version import __version__
from ..models._resolution import SAVED_SOURCES
from ..placement import AttentionSpec
from ..placement.record import OPEN_NAMES, TIMM_NAMES, began_with_published_weights, record_arguments
from ..placement.widths import changed_widths

__all__ = [
    'description_in', 'named_by_number', 'origin_of_outputs', 'plugin_config', 'saved_class_names', 'write_model']

# Entries of timm's config.json that describe a model and are not needed to build it.
_DESCRIBED = (
    'label_names', 'label_descriptions', 'problem_type', 'upright', 'license', 'description', 'tags', 'paper_ids',
    'paper_name')


def plugin_config(attn: AttentionSpec | None) -> dict[str, Any]:
    """The plugin's entry in ``config.json``: its version and the attention."""
    return {'version': __version__, 'attention': attn and attn.to_kwargs()}


def description_in(config: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """What a saved model's ``config.json`` says of its classes, pictures and origin, to be saved with it again.

    Names are left out where there are more or fewer of them than classes, as earlier versions could write them.
    """
    described = {name: config[name] for name in _DESCRIBED if name in config}
    names = described.get('label_names')
    if isinstance(names, list) and len(names) != model.num_classes:
        del described['label_names']
    return described


def origin_of_outputs(model: nn.Module) -> dict[str, Any]:
    """What the saved model that a network began as says of its outputs and pictures, which the network cannot tell.

    The result is empty for a network that began otherwise or has another number of classes, and where the saved model
    cannot be read any more.
    """
    network: Any = unwrap_model(model)
    cfg = getattr(network, 'pretrained_cfg', None) or {}
    if cfg.get('source') not in SAVED_SOURCES:
        return {}
    try:
        config = read_config_json(f'{cfg["source"]}:{cfg.get("hf_hub_id") or cfg.get("file")}')
    except (OSError, ValueError):
        return {}
    if config.get('num_classes') != getattr(network, 'num_classes', None):
        return {}
    return {name: config[name] for name in ('problem_type', 'upright') if name in config}


def saved_class_names(model: Any) -> list[str]:
    """Names of the classes in a model's configuration, in which timm allows a list, or a dict by number.

    The list is empty where there are none.
    """
    names = model.pretrained_cfg.get('label_names') or ()
    return named_by_number({int(key): name for key, name in names.items()}) if isinstance(names, Mapping) else list(
        names)


def named_by_number(names: Mapping[int, str], count: int | None = None) -> list[str]:
    """Names of the classes 0 to `count` - 1, of which some have none and are called by their number.

    The number is in brackets where it is the name of another class.

    Args:
        names: the known names by the number of the class.
        count: number of classes; that up to the last known one if None.
    """
    taken = set(names.values())
    return [names.get(i, f'({i})' if str(i) in taken else str(i))
            for i in range(max(names, default=-1) + 1 if count is None else count)]


def write_model(
        model: nn.Module, folder: str | Path, model_config: Mapping[str, Any] | None = None,
        data_config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Write ``model.safetensors`` and ``config.json`` as timm does, after a check that the model loads from them.

    If the check fails, the files of a model that the folder holds already stay as they were. The given model keeps
    its device, memory format and mode. The widths of a pruned network are written as well, whether
    :func:`~timm_se_plugin.analysis.prune_by_gates` or Torch-Pruning itself has pruned it.

    Args:
        model: a model that ``timm.create_model`` made, wrapped or not (DDP, ``torch.compile``).
        folder: the folder to write into.
        model_config: entries of ``config.json``, such as ``label_names``, as for timm's ``save_for_hf``. If None, those
            of :func:`origin_of_outputs`.
        data_config: the preprocessing that the weights were trained with, as for timm's ``save_for_hf``.

    Returns:
        The model as it loads from the folder, on the CPU.

    Raises:
        ValueError: the model is not timm's, its outputs are not finite, its name and arguments build another network,
            its layers have widths that its name does not take, or `model_config` has another number of ``label_names``
            than the model has classes.
    """
    network: Any = unwrap_model(model)
    if not all(hasattr(network, name) for name in ('pretrained_cfg', '_model_args', 'num_classes')):
        raise ValueError(
            f'{type(network).__name__} cannot be written: it is not a whole model, as timm.create_model makes one '
            'without features_only; timm before 1.0.31 does not record the arguments of its own models, so use the '
            'name that ends in _plugin there')
    if model_config is None:
        model_config = origin_of_outputs(network)
    _check_names(model_config.get('label_names'), network.num_classes)
    network = copy.deepcopy(network).cpu().eval()
    _record_widths(network)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.contiguous()  # safetensors refuses channels_last
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=folder) as unchecked:
        save_for_hf(
            network, unchecked, safe_serialization=True,
            model_config={**model_config, 'timm_se_plugin': plugin_config(AttentionSpec.of(network))},
            **_timm_arguments(network, dict(data_config or {})))
        _tidy(Path(unchecked, CONFIG), began_with_published_weights(network))
        name = network.pretrained_cfg['architecture']
        try:
            loaded: Any = timm.create_model(f'{FOLDER}{unchecked}', pretrained=True).eval()
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f'{name} is not written, since it would not load from its config.json ({error}): only the weights may '
                'differ from what timm.create_model made; save the original of a model that fuse_for_inference changed'
            ) from error
        _check_equal(network.float(), loaded)
        for file in (WEIGHTS, CONFIG):
            os.replace(Path(unchecked, file), Path(folder, file))
    loaded.pretrained_cfg['file'] = str(folder)
    return loaded


def _record_widths(network: Any) -> None:
    """Record the widths of pruned layers among the network's arguments, under a name that accepts them."""
    name = network.pretrained_cfg['architecture']
    arguments = {key: value for key, value in network._model_args.items() if key != 'pruned_widths'}
    numbers = {key: getattr(network, key) for key in ('num_classes', 'in_chans') if hasattr(network, key)}
    try:
        with torch.device('meta'):
            whole = timm.create_model(name, **{**arguments, **numbers})
    except (RuntimeError, TypeError, ValueError):  # write_model reports the reason when the network fails to load
        return
    widths = changed_widths(network, whole)
    if widths:
        if name not in OPEN_NAMES and name not in TIMM_NAMES:
            raise ValueError(
                f'{name} is not written: timm builds a network of this name only with its own widths, and '
                f'{next(iter(widths))} has others, as after pruning; torch.save(model, file) keeps the whole network. '
                'A classifier for other classes is written if timm.create_model makes it, by num_classes')
        record_arguments(network, pruned_widths=widths)
        network.pretrained_cfg = {**network.pretrained_cfg, 'architecture': TIMM_NAMES.get(name, name)}


def _tidy(path: Path, published: bool) -> None:
    """Remove or correct entries of a config.json that timm writes and that do not hold for this model.

    transformers passes the number of classes itself, so the model's arguments must not repeat it. The tag, the
    license and the paper in timm's configuration are those of the published weights, and do not hold for a network that
    began without these weights.
    """
    config = json.loads(path.read_text(encoding='utf-8'))
    config.get('model_args', {}).pop('num_classes', None)
    if not published:
        for key in ('tag', 'origin_url', 'paper_ids', 'paper_name', 'notes', 'license', 'description'):
            config['pretrained_cfg'].pop(key, None)
    if 'license' in config:
        config['pretrained_cfg']['license'] = config['license']
    path.write_text(json.dumps(config, indent=2), encoding='utf-8')


def _timm_arguments(network: Any, data_config: dict[str, Any]) -> dict[str, Any]:
    """Further arguments of timm's ``save_for_hf``.

    timm 1.0.31 and newer determine arguments and preprocessing of a model by themselves; older releases write the
    configuration of the weights that the model began with, which is corrected here.
    """
    if 'data_config' in signature(save_for_hf).parameters:
        return {'data_config': data_config or None}
    recorded = {name: value for name, value in network._model_args.items() if not name.endswith('drop_rate')}
    now = {name: getattr(network, name) for name in ('num_classes', 'in_chans') if hasattr(network, name)}
    size = tuple(data_config.get('input_size') or network.pretrained_cfg['input_size'])
    changed = {name: data_config[name] for name in ('interpolation', 'crop_pct', 'crop_mode', 'mean', 'std')
               if name in data_config}
    # With a name, these releases would adapt the first convolution, whose weights have the right channels already.
    network.pretrained_cfg = {
        **network.pretrained_cfg, **changed, 'num_classes': network.num_classes, 'first_conv': None,
        'input_size': (now.get('in_chans', size[0]), *size[1:])}
    return {'model_args': {**recorded, **now}}


def _check_names(names: Any, classes: int) -> None:
    """Raise ValueError unless there is a name for each class. timm allows a dict by number too, which may have gaps."""
    if names and not isinstance(names, Mapping) and (isinstance(names, str) or len(names) != classes):
        given = repr(names) if isinstance(names, str) else f'{len(names)} names'
        raise ValueError(f'label_names has {given}, and the model has {classes} classes; give a list with a name for '
                         'each class, in the order of the outputs')


@torch.no_grad()
def _check_equal(network: Any, loaded: Any) -> None:
    size = loaded.pretrained_cfg['input_size']
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    expected, found = network(x), loaded(x)
    if not expected.isfinite().all():
        state = network.state_dict()
        spoilt = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        raise ValueError(
            f"{loaded.pretrained_cfg['architecture']} is not written, since its outputs are NaN or infinite: "
            + (f'so are {len(spoilt)} of its {len(state)} tensors, such as {spoilt[0]}, as after a training that has '
               'diverged' if spoilt else 'its weights are finite, but too large'))
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ValueError(
            f"{loaded.pretrained_cfg['architecture']} is not written: loaded from its config.json, it computes another "
            'function, since a part of the model was replaced after timm.create_model')
