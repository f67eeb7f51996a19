"""The gates of a network, and their values, which a forward hook on each gate reads."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.selective_kernel import SelectiveKernelAttn as TimmSelectiveKernelAttn
from timm.layers.squeeze_excite import SqueezeExciteCl
from torch import Tensor, nn

from ..layers.selective_kernel import SelectiveKernelAttn
from ..placement.attentions import record_of
from ..placement.structure import check_network

__all__ = ['Gate', 'find_gates', 'kernel_names', 'observed']

# Range of a gate by the class of the activation. Other activations, such as ReLU, have no upper end.
_BOUNDS = {
    'Sigmoid': (0.0, 1.0), 'Hardsigmoid': (0.0, 1.0), 'HardSigmoid': (0.0, 1.0), 'HardSigmoidMe': (0.0, 1.0),
    'DoubleSigmoid': (0.0, 2.0), 'Tanh': (-1.0, 1.0), 'SelectiveKernelAttn': (0.0, 1.0)}
_SELECTIONS = (SelectiveKernelAttn, TimmSelectiveKernelAttn)
_NAMES = ('gate', 'sigmoid')  # the second in timm's legacy networks


@dataclass(frozen=True)
class Gate:
    """One gate of a network.

    Args:
        name: name of the attention module that holds the gate; of the gate itself if that module holds several.
        module: the module whose output is the gate's values.
        channels_last: whether that output is (N, 1, 1, C).
    """

    name: str
    module: nn.Module
    channels_last: bool = False

    @property
    def type(self) -> str:
        """Name of the module's class: Sigmoid, SelectiveKernelAttn and others."""
        return type(self.module).__name__

    @property
    def selects(self) -> bool:
        """Whether the gate weighs the branches of a Selective Kernel."""
        return isinstance(self.module, _SELECTIONS)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lower and the upper end of the gate's range; None where it has none."""
        return _BOUNDS.get(self.type)

    @property
    def stage(self) -> str:
        """The part of the network before the block's number: ``layer1`` of ``layer1.2.se``."""
        parts = self.name.split('.')[:-2 if self.selects else None]  # a kernel has a convolution's place in its block
        for i in range(len(parts) - 1, 0, -1):
            if re.fullmatch(r'b?\d+', parts[i]):
                return '.'.join(parts[:i])
        return re.sub(r'(?<=\d)[a-z]$', '', self.name.partition('.')[0])  # Mixed_5b, Mixed_5c, …

    def values(self, output: Tensor) -> Tensor:
        """The module's output as (N, branches, C, positions), with one position unless the gate is spatial.

        Raises:
            ValueError: an output of fewer than two or more than five dimensions.
        """
        if output.ndim == 5:  # (N, M, C, 1, 1)
            return output.flatten(3)
        if output.ndim == 4:
            output = output.movedim(-1, 1) if self.channels_last else output
            return output.flatten(2)[:, None]
        if output.ndim == 3:  # (N, 1, C), of ECA's one-dimensional convolution
            return output[..., None]
        if output.ndim == 2:
            return output[:, None, :, None]
        raise ValueError(
            f'the gate of {self.name} has shape {tuple(output.shape)}, but a gate has two to five dimensions')


def find_gates(model: nn.Module) -> list[Gate]:
    """Every gate of a network, in the order of its modules.

    A gate is a module that the record of an attention lists as such; in other layers a module without parameters that
    is called ``gate`` (``sigmoid`` in timm's ``legacy_*``); or the softmax over the branches of a Selective Kernel.
    The names of the gates are those of the network itself, also if `model` is the result of ``torch.compile``.

    Raises:
        ValueError: `model` is no network, or one without a gate.
    """
    check_network(model)
    model = getattr(model, '_orig_mod', model)
    modules = dict(model.named_modules(remove_duplicate=False))
    gates: dict[str, Gate] = {}
    for name, module in model.named_modules():
        if isinstance(module, _SELECTIONS):
            gates[name] = Gate(name, module)
            continue
        record = record_of(module)
        paths = record.gates if record else _NAMES
        holders = [path.rpartition('.')[0] for path in paths]
        for path, holder in zip(paths, holders, strict=True):
            full = f'{name}.{path}'.removeprefix('.')
            gate = modules.get(full)
            if gate is None or full in gates or isinstance(gate, nn.Identity) or (
                    record is None and any(True for _ in gate.parameters())):
                continue
            # The layer's name stands for its gate; of several gates in one module each has a name of its own.
            shown = path if record and holders.count(holder) > 1 else holder
            gates[full] = Gate(f'{name}.{shown}'.strip('.'), gate, isinstance(module, SqueezeExciteCl))
    if not gates:
        raise ValueError(f'{type(model).__name__} has no attention with a gate, such as SE and SK have')
    return list(gates.values())


def kernel_names(model: nn.Module, gate: Gate) -> list[str]:
    """Names of a Selective Kernel's branches by the extent of their kernels, 3x3 and 5x5; [''] for other gates."""
    if not gate.selects:
        return ['']
    owner: Any = model.get_submodule(gate.name.rpartition('.')[0])
    names = []
    for path in owner.paths:
        extent = path.conv.dilation[0] * (path.conv.kernel_size[0] - 1) + 1
        names.append(f'{extent}x{extent}')
    return names


@contextmanager
def observed(model: nn.Module, gates: Sequence[Gate], see: Callable[[Gate, Tensor], None]) -> Iterator[None]:
    """Call `see` with each gate's values, (N, branches, C, positions), whenever the network computes them.

    Inside the ``with`` block the network is in evaluation mode, runs uncompiled and computes no gradients. When the
    block ends or raises, the hooks are removed and each module gets back its mode.
    """
    modes = {module: module.training for module in model.modules()}

    def hook(gate: Gate) -> Callable[[nn.Module, tuple, Tensor], None]:
        return lambda module, args, output: see(gate, gate.values(output))

    try:
        # torch.compile may run what it compiled before the hooks were there, without calling them.
        with ExitStack() as hooks, torch.no_grad(), torch.compiler.set_stance('force_eager'):
            for gate in gates:
                hooks.enter_context(gate.module.register_forward_hook(hook(gate)))
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
