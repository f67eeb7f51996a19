"""The record that a network keeps of its attention, for a saved config.json and for state dicts."""

import json
import logging
from contextlib import suppress
from typing import Any

import timm
from torch import nn

from .spec import SHOWN_BY_WEIGHTS, AttentionSpec, applicable, attention_misfit

__all__ = [
    'OPEN_NAMES', 'TIMM_NAMES', 'began_with_published_weights', 'check_attention_of_weights', 'compare_state_dicts',
    'is_recorded', 'record_arguments', 'record_attention', 'record_origin', 'told_attention']

_logger = logging.getLogger(__name__)

_TOLD = 'timm_se_plugin.attention'  # entry of a state dict's metadata

# Names under which the same network accepts any ``attn=``: OPEN_NAMES for each name of the plugin, TIMM_NAMES for
# timm's names. The registration of models fills both.
OPEN_NAMES: dict[str, str] = {}
TIMM_NAMES: dict[str, str] = {}


def record_arguments(model: nn.Module, **arguments: Any) -> None:
    """Add to the arguments that timm writes into config.json and passes to the constructor when the model is loaded.

    timm 1.0.31 and newer keep the arguments in this attribute; for older releases the package does.
    """
    recorded: Any = model
    recorded._model_args = {**getattr(model, '_model_args', {}), **arguments}


def record_origin(model: nn.Module, published: bool) -> None:
    """Record, for config.json, whether the network began with the weights that its configuration names."""
    network: Any = model
    network._began_with_published_weights = published


def began_with_published_weights(model: nn.Module) -> bool:
    """The value that :func:`record_origin` has recorded; True for a network without a record."""
    return bool(getattr(model, '_began_with_published_weights', True))


def compare_state_dicts(model: nn.Module) -> None:
    """From now on, let ``state_dict()`` tell the attention of the network, and ``load_state_dict()`` compare it.

    Keys and shapes do not show, for example, which gate the weights were trained with. The attention is told in the
    metadata that PyTorch keeps beside the keys and ``torch.save`` writes. What says nothing of its attention, such as a
    safetensors file or a copied ``dict``, loads as before.
    """
    if _tell not in model._state_dict_hooks.values():
        model.register_state_dict_post_hook(_tell)
        model.register_load_state_dict_pre_hook(_compare)


def _recorded(module: nn.Module) -> AttentionSpec | None:
    own = getattr(module, 'attn', None)
    return own if isinstance(own, AttentionSpec) else AttentionSpec.of(module)  # the former in a backbone


def _tell(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    told = _told(module)
    if told is not None:
        metadata[_TOLD] = told


def _told(module: nn.Module) -> str | None:
    spec = _recorded(module)
    with suppress(TypeError):  # options of a user's attention that JSON, and a safe torch.load, do not know
        return json.dumps(spec.to_kwargs()) if spec else None
    return None


def _compare(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any) -> None:
    told, spec = metadata.get(_TOLD), _recorded(module)
    if told is None or spec is None:
        return
    keys = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    if json.loads(told)['attn'] == spec.attn or keys == module.state_dict().keys():
        check_attention_of_weights(module, told)


def told_attention(state: Any) -> str | None:
    """Keywords of the attention that a state dict tells, as JSON, also of a part of the network or of a wrapper."""
    metadata = getattr(state, '_metadata', {}).values()
    return next((entry[_TOLD] for entry in metadata if _TOLD in entry), None)


def check_attention_of_weights(module: nn.Module, told: str | None) -> None:
    """Raise ValueError if weights tell another attention than that of the network; `told` is :func:`told_attention`.

    What keys and shapes show is left to them, also attention that only one of the two has.
    """
    own = _told(module)
    if own is None or told is None:
        return
    network, weights = (_read(text) for text in (own, told))  # both from JSON, which has lists for tuples
    by_shapes = ('attn_groups',) if network.record.selects_kernels else ()
    different = attention_misfit(network, weights, ignored=(*SHOWN_BY_WEIGHTS, *by_shapes))
    if different:
        raise ValueError('the weights belong to another attention than that of this network: '
                         f'{different}; build the network with the options of the weights, or load '
                         'dict(state_dict), which does not tell its attention')


def _read(told: str) -> AttentionSpec:
    options = applicable(json.loads(told))
    return AttentionSpec.from_kwargs({**options, 'attn': 'se'} if options['attn'] == 'cse' else options)  # one layer


def record_attention(model: nn.Module, spec: AttentionSpec | None) -> None:
    """Record the attention that a network now carries, for ``AttentionSpec.of`` and config.json.

    A network of timm's is recorded under the plugin's name for the same network, if there is one, since only that name
    builds the attention again.
    """
    recorded: Any = model
    recorded._model_args = {name: value for name, value in getattr(model, '_model_args', {}).items()
                            if not name.startswith('attn_')}
    record_arguments(model, **(spec.to_kwargs() if spec else {'attn': 'none'}))
    compare_state_dicts(model)
    cfg: Any = getattr(model, 'pretrained_cfg', None) or {}
    name = cfg.get('architecture') or ''
    opened = TIMM_NAMES.get(name) or (OPEN_NAMES.get(name) if spec is None else None)
    if opened:
        model.pretrained_cfg = model.default_cfg = {**cfg, 'architecture': opened}  # type: ignore[assignment]
    elif spec is not None and name not in OPEN_NAMES and timm.is_model(name):
        _logger.warning('there is no %s_plugin: timm cannot build %s with attn=%r again from a config.json',
                        name, name, spec.attn)


def is_recorded(module: nn.Module) -> bool:
    """Whether a network is recorded to carry attention of the plugin."""
    return bool(_recorded(module))
