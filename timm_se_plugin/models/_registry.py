"""The plugin's names, registered with timm."""

import sys
from typing import Any

from timm.models import DefaultCfg, register_model
from torch import nn

from ._builder import Architecture, build

__all__ = ['architectures', 'register']

architectures: dict[str, Architecture] = {}  # by name, of every module of names


def register(module: str, arch: Architecture, default_cfg: DefaultCfg, doc: str) -> None:
    """Register a name with timm, as an entrypoint of a module.

    Args:
        module: the ``__name__`` of the module; timm groups models by its last part, and reads its ``default_cfgs``.
        arch: what stands behind the name.
        default_cfg: its pretrained configurations.
        doc: the entrypoint's docstring.
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
    register_model(entrypoint)
