"""Parameters, multiply-accumulates (MACs) and activation memory of a network, and the attention's share of them."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..placement import counted_attention
from ..placement.recalibration import attention_of_output
from ..placement.structure import check_network, image_size, run_structure, structure_of

__all__ = ['CONVENTION', 'Complexity', 'ModuleCost', 'complexity', 'saved_bytes']

CONVENTION = (
    'MACs: one per multiply-add of convolutions and matrix products for one image; '
    'normalisation, activation, pooling, scaling and addition count zero'
)


@dataclass(frozen=True)
class ModuleCost:
    """Cost of one module without its children.

    Args:
        name: name in the network.
        type: name of the class.
        params: number of parameters.
        macs: multiply-accumulates for one image.
        is_attention: whether the module is an attention layer or a part of one.
    """

    name: str
    type: str
    params: int
    macs: int
    is_attention: bool


@dataclass(frozen=True)
class Complexity:
    """Cost of a network at one input size.

    Args:
        modules: the modules that have parameters or MACs of their own.
        input_size: (C, H, W) of the image.
    """

    modules: tuple[ModuleCost, ...]
    input_size: tuple[int, int, int]

    @property
    def params(self) -> int:
        """Parameters of the network."""
        return sum(module.params for module in self.modules)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the network for one image."""
        return sum(module.macs for module in self.modules)

    @property
    def attention_params(self) -> int:
        """Parameters of the attention layers."""
        return sum(module.params for module in self.modules if module.is_attention)

    @property
    def attention_macs(self) -> int:
        """Multiply-accumulates of the attention layers for one image."""
        return sum(module.macs for module in self.modules if module.is_attention)

    def __str__(self) -> str:
        size = 'x'.join(map(str, self.input_size))
        lines = [CONVENTION, f'{"input " + size:<32}{"type":<16}{"params":>14}{"MACs":>18}']
        for module in self.modules:
            mark = '  attention' if module.is_attention else ''
            lines.append(f'{module.name:<32}{module.type:<16}{module.params:>14,}{module.macs:>18,}{mark}')
        lines.append(f'{"of which attention":<48}{self.attention_params:>14,}{self.attention_macs:>18,}')
        lines.append(f'{"total":<48}{self.params:>14,}{self.macs:>18,}')
        return '\n'.join(lines)


def complexity(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Complexity:
    """Count parameters and MACs of `model` on the meta device, which allocates and computes nothing.

    Args:
        model: any network that takes one batch of images.
        input_size: (C, H, W) of the image; if None, the size in the network's configuration.

    Raises:
        ValueError: `model` is no network, does not accept such an image, or cannot be copied.
    """
    check_network(model)
    input_size = input_size or image_size(model)
    counted = structure_of(model)
    _separate(counted, set())
    with FlopCounterMode(display=False) as counter:
        run_structure(counted, input_size)
    root = type(counted).__name__
    flops = {name.removeprefix(f'{root}.'): sum(ops.values()) for name, ops in counter.get_flop_counts().items()}

    def inner(name: str, module: nn.Module) -> int:
        return sum(whole(f'{name}.{child}' if name else child, inside) for child, inside in module.named_children())

    def whole(name: str, module: nn.Module) -> int:
        if name not in flops:
            return inner(name, module)  # a ModuleList is not called, but its content is
        hooked = attention_of_output(module)  # the hook calls it outside the module's count
        return flops[name] + (whole(f'{name}.{hooked}', module.get_submodule(hooked)) if hooked else 0)

    attention = tuple(f'{name}.' if name else '' for name in counted_attention(counted))
    costs: list[ModuleCost] = []
    known: set[nn.Parameter] = set()  # modules may share parameters
    for name, module in counted.named_modules():
        own = set(module.parameters(recurse=False)) - known
        known |= own
        params = sum(p.numel() for p in own)
        macs = ((whole(name, module) if name else counter.get_total_flops()) - inner(name, module)) // 2
        if params or macs:
            costs.append(ModuleCost(name, type(module).__name__, params, macs, f'{name}.'.startswith(attention)))
    return Complexity(tuple(costs), input_size)


def _separate(module: nn.Module, known: set[nn.Module]) -> None:
    """Give each place of a module its own copy, with the same parameters; the counter has one name for a module."""
    for name, child in module._modules.items():
        if child is None:
            continue
        if child in known:
            child = copy.copy(child)
            child._modules = dict(child._modules)
            module._modules[name] = child
        known.add(child)
        _separate(child, known)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that one forward pass on x keeps for the backward pass, without x, parameters and buffers.

    A storage that several operations keep counts once. The buffers, such as BatchNorm's statistics, stay as they were.
    """
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # tensor itself, kept by the operator that computed it, as by a ReLU, is never freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(x)  # keeps the graph alive, so that no address is used twice
    del out
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
    return sum(storages.values())
