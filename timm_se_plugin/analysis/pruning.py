"""Pruning of the channels that the gates use least, which the SE paper proposes in its conclusion."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import GlobalContext
from torch import Tensor, nn

from ..placement.recalibration import attention_of_output, install, uninstall
from ..placement.structure import choose_fused
from ..placement.widths import tell_widths
from .gates import find_gates
from .statistics import GateStatistics, check_statistics

__all__ = ['CRITERIA', 'check_cut', 'prune_by_gates']

CRITERIA = ('mean', 'deviation', 'random')


# Torch-Pruning follows a network by its gradients.
@torch.inference_mode(False)
@torch.enable_grad()
def prune_by_gates(
        model: nn.Module, statistics: GateStatistics, share: float, input_size: tuple[int, int, int],
        criterion: str = 'mean', seed: int = 0,
) -> nn.Module:
    """Copy of `model` without the channels that the SE gates use least, made by Torch-Pruning.

    A channel is removed together with everything that depends on it. Where several gates scale the same channel, as in
    the blocks of a residual stage, the average of the gates decides. Channels that no gate scales stay.

    Args:
        model: a network with SE of the plugin or of timm; it is not changed.
        statistics: statistics of the network's gates.
        share: share of the channels to remove from every group of gated channels, in (0, 1).
        input_size: (C, H, W) of an image.
        criterion: ``'mean'`` removes the channels with the smallest mean gate in magnitude, ``'deviation'`` those whose
            gate changes least from image to image, and ``'random'`` any, for comparison.
        seed: seed of ``'random'``.

    Returns:
        The smaller network, which has to be fine-tuned; it has the mode of `model`, and the same parameters are frozen.
        :func:`~timm_se_plugin.weights.write_model` saves the network with its widths.

    Raises:
        ValueError: an unknown criterion, a share outside (0, 1), statistics of another network, no channel that an SE
            gate scales and that no linear layer computes, or a network that Torch-Pruning cannot follow.
    """
    import torch_pruning as tp

    check_cut(share, criterion)
    model = getattr(model, '_orig_mod', model)  # of torch.compile, which would compile each step of the pruning
    check_statistics(statistics, find_gates(model))
    pruned = copy.deepcopy(model).requires_grad_()
    choose_fused(pruned)  # Torch-Pruning follows the modules, by hooks
    device = next(pruned.parameters()).device
    gates = {}
    for layer in statistics.layers:
        last = _last_layer(pruned.get_submodule(layer.name))
        if last is not None and last.out_channels == layer.means.shape[2] and len(layer.branches) == 1:
            gates[last] = (layer.std if criterion == 'deviation' else layer.mean.abs())[0]
    generator = torch.Generator().manual_seed(seed)
    found = []

    def importance(group: Any) -> Tensor | None:
        scores = []
        for dependency, indices in group:
            module = dependency.target.module
            if module in gates and dependency.handler.__name__ == 'prune_out_channels' and \
                    len(indices) == len(gates[module]):
                scores.append(gates[module][torch.as_tensor(list(indices))])
        if not scores:
            return None
        found.append(group)
        return torch.rand(len(scores[0]), generator=generator) if criterion == 'random' else torch.stack(scores).mean(0)

    x = torch.zeros(1, *input_size, device=device, dtype=next(pruned.parameters()).dtype)
    unknown = ValueError(
        f'{type(model).__name__} treats its channels in a way that Torch-Pruning cannot follow, such as a shortcut '
        'that pads them; it follows convolutions, norms, gates and additions')
    if any(isinstance(module, GlobalContext) for module in pruned.modules()):  # Torch-Pruning would fill the memory
        raise unknown
    try:
        with _attention_after_layers(pruned):
            linear = [module for module in pruned.modules() if isinstance(module, nn.Linear)]  # the classifier is one
            pruner = tp.pruner.BasePruner(pruned, x, importance=importance, pruning_ratio=share, ignored_layers=linear)
            for group in pruner.step(interactive=True):
                group.prune()
        tell_widths(pruned, input_size)
    except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
        raise unknown from error
    if not found:
        raise ValueError(f'{type(model).__name__} has no channels that an SE gate scales and that can be removed; '
                         'linear layers keep their widths')
    for name, parameter in model.named_parameters():
        pruned.get_parameter(name).requires_grad_(parameter.requires_grad)
    for name, module in model.named_modules():
        pruned.get_submodule(name).training = module.training
        if hasattr(module, 'fused'):
            pruned.get_submodule(name).fused = module.fused
    return pruned


def check_cut(share: float, criterion: str) -> None:
    """Raise ValueError for an unknown criterion, or a share outside (0, 1)."""
    if criterion not in CRITERIA:
        raise ValueError(f'criterion={criterion!r} is not one of {", ".join(CRITERIA)}')
    if not 0 < share < 1:
        raise ValueError(f'share={share} is not between 0 and 1')


@contextmanager
def _attention_after_layers(model: nn.Module) -> Iterator[None]:
    """Inside the ``with`` block, attention that a hook calls on the output of a layer is a module after the layer.

    Torch-Pruning takes the output of a layer, which the hook has changed, for what the layer itself computes.
    """
    moved = []
    for name, layer in list(model.named_modules()):
        if name and attention_of_output(layer) and any(True for _ in layer.parameters(recurse=False)):
            attention = uninstall(layer)
            model.set_submodule(name, nn.Sequential(layer, attention))
            moved.append((name, layer, attention))
    yield
    for name, layer, attention in moved:
        model.set_submodule(name, layer)
        install(layer, attention, 'output')


def _last_layer(attention: nn.Module) -> Any:
    """The last convolution of an attention, which has an output per gate; None if there is no convolution."""
    convs = [module for module in attention.modules() if isinstance(module, nn.Conv2d)]
    return convs[-1] if convs else None
