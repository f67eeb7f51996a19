"""Layers whose parameters start at zero, and do so again whenever they are drawn anew."""

from functools import partial
from typing import Any

from torch import nn

__all__ = ['start_at_zero']


def start_at_zero(module: Any) -> None:
    """Zero a layer's weight and bias, now and in every later ``reset_parameters()``.

    FSDP and other tools that build a network on the meta device call ``reset_parameters`` of each layer once the layer
    has memory; PyTorch's own method would draw random weights.
    """
    _zero(module)
    module.reset_parameters = partial(_reset, module)


def _zero(module: Any) -> None:
    nn.init.zeros_(module.weight)
    if getattr(module, 'bias', None) is not None:
        nn.init.zeros_(module.bias)


def _reset(module: Any) -> None:
    type(module).reset_parameters(module)
    _zero(module)
