"""Attention on the output or input of an existing module, without a change of the network's other keys.

The attention becomes a child of the module, and a hook of the module calls it. A wrapper or an inserted module would
rename keys and shift the levels that ``features_only`` and ``forward_intermediates`` count. The hooks are functions at
module level, so that networks can be copied and pickled; TorchScript compiles them, and fx and torch.export trace them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

__all__ = ['Tensors', 'attention_in', 'attention_of_output', 'install', 'is_attention_hook', 'uninstall']

Tensors = Literal['output', 'input']


def _se_of_output(self: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
    return self.se(output)


def _se_of_input(self: Any, args: tuple[Tensor]) -> tuple[Tensor]:
    return (self.se(args[0]),)


def _attention_of_output(self: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
    return self.attention(output)


def _attention_of_input(self: Any, args: tuple[Tensor]) -> tuple[Tensor]:
    return (self.attention(args[0]),)


# The name of the child, and the hook that calls the child. The second name is for modules with an attribute `se` of
# their own, such as timm's blocks with a slot for attention.
_OF_OUTPUT: dict[str, Callable] = {'se': _se_of_output, 'attention': _attention_of_output}
_OF_INPUT: dict[str, Callable] = {'se': _se_of_input, 'attention': _attention_of_input}


def is_attention_hook(hook: Any) -> bool:
    """Whether a hook is one that :func:`install` registers."""
    return hook in _OF_OUTPUT.values() or hook in _OF_INPUT.values()


def _is_sequence(module: nn.Module) -> bool:
    """Whether the module runs its children one after the other, so that attention can be one of them."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def attention_in(module: nn.Module) -> str | None:
    """Name of the child that :func:`install` has given to a module; None if there is none."""
    if _is_sequence(module):
        return 'se' if 'se' in module._modules else None
    return attention_of_output(module) or _hooked(module, module._forward_pre_hooks, _OF_INPUT)


def attention_of_output(module: nn.Module) -> str | None:
    """Name of the child that a hook calls on the module's output; None if there is none."""
    return _hooked(module, module._forward_hooks, _OF_OUTPUT)


def _hooked(module: nn.Module, hooks: Mapping[int, Callable], names: Mapping[str, Callable]) -> str | None:
    return next((name for name, hook in names.items() if hook in hooks.values() and name in module._modules), None)


def install(module: nn.Module, attention: nn.Module, tensor: Tensors) -> str:
    """Let `attention` recalibrate the output or the input of `module`, whose children and keys stay.

    Returns:
        The name of the attention in `module`: ``'se'``, or ``'attention'`` where the module has a ``se`` of its own.

    Raises:
        ValueError: the module has these names already; a sequence only takes ``'se'``.
    """
    if _is_sequence(module) and not hasattr(module, 'se'):
        module.add_module('se', attention)
        if tensor == 'input':
            children = dict(module._modules)
            module._modules.clear()
            module._modules.update({'se': children.pop('se'), **children})
        return 'se'
    name = next((name for name in _OF_OUTPUT if not hasattr(module, name)), None)
    if name is None or _is_sequence(module):
        taken = 'se' if _is_sequence(module) else ' and '.join(_OF_OUTPUT)
        raise ValueError(f'a {type(module).__name__} already has {taken}, the name that attention would get; choose '
                         'the module inside or around it')
    module.add_module(name, attention)
    if tensor == 'output':  # before the user's hooks, which see the final output
        module.register_forward_hook(_OF_OUTPUT[name], prepend=True)
    else:
        module.register_forward_pre_hook(_OF_INPUT[name])
    return name


def uninstall(module: nn.Module) -> nn.Module:
    """Undo :func:`install`; return the attention."""
    name = attention_in(module)
    assert name is not None  # the caller has checked
    attention = module.get_submodule(name)
    delattr(module, name)
    hooks: Any
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if is_attention_hook(hook)]:
            del hooks[key]
    return attention
