"""Selective Kernels in the place of a network's 3x3 convolutions."""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from .families import RESIDUAL_BLOCKS, KernelSite, is_of_type
from .residual import initialise_as_timm
from .spec import AttentionSpec

__all__ = ['select_kernels']


def select_kernels(block: nn.Module, site: KernelSite, spec: AttentionSpec) -> None:
    """Replace the 3x3 convolution of a block by a Selective Kernel.

    Every branch gets a convolution of its own, and copies of the block's norm, activation and layers between them,
    which become identities in the block.

    Args:
        block: a block of a kind that `site` names.
        site: where the convolution is.
        spec: SK's options.

    Raises:
        ValueError: options that do not suit the convolution's channels.
    """
    conv: Any = block.get_submodule(site.conv)
    absorbed = {name: block.get_submodule(name) for name in (site.norm, site.act, site.drop, site.aa) if name}
    aa = absorbed.get(site.aa, nn.Identity())
    stride: int = conv.stride[0] if isinstance(aa, nn.Identity) else block.stride  # type: ignore[assignment]
    layers = {name: _copies(absorbed[module]) for name, module in (
        ('norm_layer', site.norm), ('act_layer', site.act), ('drop_layer', site.drop), ('aa_layer', site.aa))
        if module and not isinstance(absorbed[module], nn.Identity)}
    kernel = spec.create_selective_kernel(
        conv, stride=stride, device=conv.weight.device, dtype=conv.weight.dtype, **layers)
    if is_of_type(block, RESIDUAL_BLOCKS):
        initialise_as_timm(kernel)
    block.set_submodule(site.conv, kernel.train(block.training))
    for name in absorbed:
        block.set_submodule(name, nn.Identity())


def _copies(module: nn.Module) -> Callable[..., nn.Module]:
    """A constructor that ignores its arguments and returns a copy of a module."""
    return lambda *args, **kwargs: copy.deepcopy(module)
