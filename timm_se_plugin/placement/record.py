"""The record that a network keeps of its attention, from which a saved config.json builds the network again."""

import logging
from typing import Any

import timm
from torch import nn

from .spec import AttentionSpec

__all__ = [
    'OPEN_NAMES', 'TIMM_NAMES', 'began_with_published_weights', 'is_recorded', 'record_arguments', 'record_attention',
    'record_origin']

_logger = logging.getLogger(__name__)

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


def record_attention(model: nn.Module, spec: AttentionSpec | None) -> None:
    """Record the attention that a network now carries, for ``AttentionSpec.of`` and config.json.

    A network of timm's is recorded under the plugin's name for the same network, if there is one, since only that name
    builds the attention again.
    """
    recorded: Any = model
    recorded._model_args = {name: value for name, value in getattr(model, '_model_args', {}).items()
                            if not name.startswith('attn_')}
    record_arguments(model, **(spec.to_kwargs() if spec else {'attn': 'none'}))
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
    return bool(AttentionSpec.of(module)) or isinstance(getattr(module, 'attn', None), AttentionSpec)  # a backbone
