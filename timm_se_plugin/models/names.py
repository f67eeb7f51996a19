"""Names that timm can build."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm

from ._registry import architectures

__all__ = ['check_model']


def check_model(name: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Refuse a name that timm cannot build, and attention for a network that does not take it by a keyword.

    Raises:
        ValueError: neither timm nor the plugin has a model of this name, or it is timm's own and `arguments` have
            an ``attn``.
    """
    plain = name.partition('.')[0]
    if ':' not in name and not timm.is_model(plain):  # hf-hub: and local-dir: name saved models
        close = get_close_matches(name, timm.list_models(), 3)
        hint = f'did you mean {", ".join(close)}?' if close else '`timm-se models` lists all names'
        raise ValueError(f'the model {name} is unknown; {hint}')
    opened, asks = f'{plain}_plugin', any(key.startswith('attn') for key in arguments or ())
    if asks and plain not in architectures and opened in architectures:
        raise ValueError(f"{plain} is timm's own network and takes no attn=; use {opened}, the same network, instead")
