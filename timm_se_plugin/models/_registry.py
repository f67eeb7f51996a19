"""The plugin's names, registered with timm."""

import sys
from typing import Any

from timm.models import DefaultCfg, register_model
from torch import nn

from ..placement.record import OPEN_NAMES, TIMM_NAMES
from ._architecture import Architecture
from ._builder import build

__all__ = ['architecture_of', 'architectures', 'register']

architectures: dict[str, Architecture] = {}  # by registered name


def architecture_of(name: str) -> Architecture | None:
    """The network behind a name of the plugin, or behind a timm name that the plugin has too; None for others."""
    return architectures.get(name) or architectures.get(TIMM_NAMES.get(name, ''))


def register(module: str, arch: Architecture, default_cfg: DefaultCfg, doc: str, opened: str = '') -> None:
    """Register a name with timm, as an entrypoint of a module.

    Args:
        module: the ``__name__`` of the module; timm groups models by its last part, and reads its ``default_cfgs``.
        arch: the network behind the name.
        default_cfg: its pretrained configurations.
        doc: the entrypoint's docstring.
        opened: the name of the same network that accepts ``attn=``; `arch` itself if not given.
    """
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(arch, pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = arch.name
    entrypoint.__module__ = module
    entrypoint.__doc__ = doc
    names = vars(sys.modules[module])
    names[arch.name] = entrypoint  # importable, as timm's own entrypoints are
    names['default_cfgs'][arch.name] = default_cfg
    architectures[arch.name] = arch
    OPEN_NAMES[arch.name] = opened or arch.name
    if arch.timm_name:
        TIMM_NAMES[arch.timm_name] = arch.name
    register_model(entrypoint)
