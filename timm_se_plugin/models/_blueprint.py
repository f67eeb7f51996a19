"""How timm builds a network, without building it."""

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import timm
from torch import nn

__all__ = ['Blueprint', 'blueprint']


class Blueprint(NamedTuple):
    """What a timm entrypoint asks timm's builder for: the class, the variant's name and the class's arguments."""

    model_cls: Callable[..., nn.Module]
    variant: str
    kwargs: dict[str, Any]


@cache
def blueprint(name: str) -> Blueprint:
    """Blueprint of a timm model name (treat as read-only).

    timm has no public way to ask, so its entrypoint runs here with a copy of its module's names in which
    ``build_model_with_cfg`` records its arguments. timm itself is not touched.
    """
    entrypoint = timm.models.model_entrypoint(name)
    recorded: list[Blueprint] = []

    def record(model_cls: Callable[..., nn.Module], variant: str, pretrained: bool, **kwargs: Any) -> None:
        recorded.append(Blueprint(model_cls, variant, kwargs))

    names = dict(entrypoint.__globals__, build_model_with_cfg=record)
    for key, value in entrypoint.__globals__.items():
        if isinstance(value, FunctionType) and key.startswith('_') and value.__globals__ is entrypoint.__globals__:
            names[key] = _rebound(value, names)
    _rebound(entrypoint, names)()
    if not recorded:
        raise RuntimeError(f'timm {timm.__version__} does not build {name} by build_model_with_cfg any more')
    return recorded[0]


def _rebound(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
