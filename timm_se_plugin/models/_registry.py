"""The plugin's names, registered with timm."""

import sys
from collections.abc import Callable
from typing import Any

from timm.models import DefaultCfg, register_model
from torch import nn

from ..placement import AttentionSpec
from ..placement.record import OPEN_NAMES, TIMM_NAMES
from ._architecture import Architecture
from ._builder import build
from ._published import Source, with_warm_starts, without_weights

__all__ = ['architecture_of', 'architectures', 'register', 'register_variants']

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


def register_variants(
        module: str, base: str, create: Callable[..., nn.Module], attns: tuple[AttentionSpec, ...],
        default_cfg: DefaultCfg, source: Source | None = None, **common: Any,
) -> None:
    """Register ``<base>_plugin``, which accepts ``attn=``, and ``<attn>_<base>_plugin`` for each attention.

    Args:
        module: as for :func:`register`.
        base: timm's name of the network, or a name of the package's own.
        create: builds the network without attention.
        attns: the attentions, which are added to weights of the plain network by the tags ``from_<tag>``.
        default_cfg: pretrained configurations of the plain network.
        source: the published weights of the plain network; None for a network that timm does not have.
        **common: further arguments of :class:`Architecture`.
    """
    timm_name = base if source else ''
    plain = Architecture(f'{base}_plugin', base, None, create, timm_name=timm_name, source=source, **common)
    register(module, plain, default_cfg, f'{base}, with any attention by attn=.')
    for attn in attns:
        arch = Architecture(
            f'{attn.attn}_{base}_plugin', base, attn, create, accepts_attn=False, plain_source=source, **common)
        register(module, arch, with_warm_starts(without_weights(default_cfg.default), default_cfg),
                 f'{base} with attention: {attn.attn}.', opened=plain.name)
