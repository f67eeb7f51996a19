"""A module that recalibrates its own output or input: attention inside a network whose keys stay as they are.

The attention becomes a child ``se`` of a module that is already there, and the module's class a subclass of its own
whose ``forward`` composes the two. No other way keeps all of timm's machinery: a wrapper or an inserted module renames
keys and moves the places that ``features_only`` and ``forward_intermediates`` count; TorchScript sees neither a forward
that is patched into an instance nor a hook, and does not compile ``super().forward(x)``, but it does compile a method
by another name.
"""

from functools import cache
from types import FunctionType
from typing import Any, Literal

from torch import Tensor, nn

__all__ = ['Tensors', 'install', 'is_recalibrated', 'renamed', 'uninstall']

Tensors = Literal['output', 'input']


def renamed(method: Any, name: str) -> FunctionType:
    """The same method by another name, which TorchScript compiles beside one that overrides it."""
    copy = FunctionType(method.__code__, method.__globals__, name, method.__defaults__, method.__closure__)
    copy.__kwdefaults__ = method.__kwdefaults__
    copy.__annotations__ = dict(method.__annotations__)
    return copy


def _recalibrate_output(self: Any, x: Tensor) -> Tensor:
    return self.se(self.host_forward(x))


def _recalibrate_input(self: Any, x: Tensor) -> Tensor:
    return self.host_forward(self.se(x))


def _reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
    return _restored, (self.host_class, self.recalibrated), self.__dict__


def _restored(host: Any, tensor: Tensors) -> nn.Module:
    """An empty module of the class, for pickle and copy, which can't find it by name."""
    cls = _subclass(host, tensor)
    return cls.__new__(cls)


@cache
def _subclass(host: Any, tensor: Tensors) -> type[nn.Module]:
    return type(f'Recalibrated{host.__name__}', (host,), {
        'forward': _recalibrate_output if tensor == 'output' else _recalibrate_input,
        'host_forward': renamed(host.forward, 'host_forward'),
        'host_class': host,
        'recalibrated': tensor,
        '__reduce_ex__': _reduced,
        '__module__': host.__module__,  # fx takes torch.nn's modules for leaves, and can't trace all of them
    })


def is_sequence(module: nn.Module) -> bool:
    """Whether the module runs its children one after the other, an attention among them too."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_recalibrated(module: nn.Module) -> bool:
    """Whether the module carries an attention from :func:`install`."""
    return hasattr(module, 'host_class') or (is_sequence(module) and 'se' in module._modules)


def install(module: Any, attention: nn.Module, tensor: Tensors) -> None:
    """Let `attention` recalibrate the output or the input of `module`, whose children and keys stay."""
    if not is_sequence(module):
        host: Any = type(module)
        module.__class__ = _subclass(host, tensor)
    module.add_module('se', attention)
    if is_sequence(module) and tensor == 'input':
        children = dict(module._modules)
        module._modules.clear()
        module._modules.update({'se': children.pop('se'), **children})


def uninstall(module: Any) -> nn.Module:
    """Undo :func:`install`; return the attention."""
    attention: nn.Module = module.se
    del module.se
    if not is_sequence(module):
        module.__class__ = module.host_class
    return attention
