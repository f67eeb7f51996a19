"""Layers that start at zero, and start there again whenever their parameters are drawn anew."""

from functools import partial
from typing import Any

from torch import nn

__all__ = ['start_at_zero']


def start_at_zero(module: Any) -> None:
    """Zero a layer's weight and bias, now and in every later ``reset_parameters()``.

    FSDP and other tools that build a network on the meta device call ``reset_parameters`` of each layer once it has
    memory; PyTorch's own would give it random weights.
    """
    _zero(module)
    module.reset_parameters = partial(_reset, module)


def _zero(module: Any) -> None:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _reset(module: Any) -> None:
    type(module).reset_parameters(module)
    _zero(module)
