"""What a network remembers of its attention, so that it is read again and a saved config.json builds it again."""

import logging
from typing import Any

import timm
from torch import nn

from .spec import AttentionSpec

__all__ = [
    'OPEN_NAMES', 'TIMM_NAMES', 'began_with_published_weights', 'is_recorded', 'record_arguments', 'record_attention',
    'record_origin']

_logger = logging.getLogger(__name__)

# The name of the same network that takes any attention by ``attn=``: of each registered name, and of each name of
# timm's that has one. Both are filled where names are registered.
OPEN_NAMES: dict[str, str] = {}
TIMM_NAMES: dict[str, str] = {}


def record_arguments(model: nn.Module, **arguments: Any) -> None:
    """Add to the arguments that timm writes into config.json, and gives its constructor when the model is loaded.

    timm 1.0.31 and newer keep them in this attribute; for older releases the package does.
    """
    recorded: Any = model
    recorded._model_args = {**getattr(model, '_model_args', {}), **arguments}


def record_origin(model: nn.Module, published: bool) -> None:
    """Let a saved config.json know whether the network began with the weights that its configuration names."""
    network: Any = model
    network._began_with_published_weights = published


def began_with_published_weights(model: nn.Module) -> bool:
    """What :func:`record_origin` has recorded; True for a network of which nothing is known."""
    return bool(getattr(model, '_began_with_published_weights', True))


def record_attention(model: nn.Module, spec: AttentionSpec | None) -> None:
    """Let ``AttentionSpec.of`` and a saved config.json know the attention that a network carries now.

    A plain network of timm's is recorded under the plugin's name for it, where there is one: the name that builds it
    again.
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
    """Whether a network says that it carries attention of the plugin."""
    return bool(AttentionSpec.of(module)) or isinstance(getattr(module, 'attn', None), AttentionSpec)  # a backbone's
