"""Pruning of the channels that the gates use least, which the SE paper proposes in its conclusion."""

import copy
from typing import Any

import torch
from timm.layers import GlobalContext
from torch import Tensor, nn

from .statistics import GateStatistics

__all__ = ['CRITERIA', 'prune_by_gates']

CRITERIA = ('mean', 'deviation', 'random')


def prune_by_gates(
        model: nn.Module, statistics: GateStatistics, share: float, input_size: tuple[int, int, int],
        criterion: str = 'mean', seed: int = 0,
) -> nn.Module:
    """Copy of `model` without the channels that its SE gates use least, made by Torch-Pruning.

    A channel is removed together with everything that depends on it. Where several gates scale the same channel, as in
    the blocks of a residual stage, their average decides. Channels that no gate scales stay.

    Args:
        model: a network with SE of the plugin or of timm; it is not changed.
        statistics: of the network's gates.
        share: of the gated channels to remove from every group of them, in (0, 1).
        input_size: (C, H, W) of an image.
        criterion: ``'mean'`` removes the channels with the smallest mean gate in magnitude, ``'deviation'`` those whose
            gate changes least from image to image, and ``'random'`` any, for comparison.
        seed: of ``'random'``.

    Returns:
        The smaller network, which has to be fine-tuned.

    Raises:
        ValueError: an unknown criterion, a share outside (0, 1), no channel that an SE gate scales, or a network that
            Torch-Pruning cannot follow.
    """
    import torch_pruning as tp

    if criterion not in CRITERIA:
        raise ValueError(f'criterion={criterion!r} is unknown; the criteria are {", ".join(CRITERIA)}')
    if not 0 < share < 1:
        raise ValueError(f'share={share} is not between 0 and 1')
    pruned = copy.deepcopy(model)
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
    if any(isinstance(module, GlobalContext) for module in pruned.modules()):  # with it Torch-Pruning fills the memory
        raise unknown
    try:
        pruner = tp.pruner.BasePruner(
            pruned, x, importance=importance, pruning_ratio=share, ignored_layers=_outputs(pruned))
        for group in pruner.step(interactive=True):
            group.prune()
        _tell_widths(pruned, x)
    except (ArithmeticError, LookupError, RuntimeError) as error:
        raise unknown from error
    if not found:
        raise ValueError(f'{type(model).__name__} has no channels that an SE gate scales')
    return pruned


@torch.no_grad()
def _tell_widths(model: Any, x: Tensor) -> None:
    """Correct the numbers of channels that timm's network states of itself, by those of a forward pass."""
    levels = model.feature_info if isinstance(getattr(model, 'feature_info', None), list) else []
    widths: dict[str, int] = {}
    trial = copy.deepcopy(model).eval()
    for level in levels:
        trial.get_submodule(level['module']).register_forward_hook(
            lambda module, args, output, name=level['module']: widths.update({name: output.shape[1]}))
    trial(x)
    for level in levels:
        level['num_chs'] = widths.get(level['module'], level['num_chs'])
    classifier = model.get_classifier() if hasattr(model, 'get_classifier') else None
    if isinstance(classifier, nn.Linear):
        for name in ('num_features', 'head_hidden_size'):
            if hasattr(model, name):
                setattr(model, name, classifier.in_features)


def _last_layer(attention: nn.Module) -> Any:
    """The last convolution of an attention, which has an output for each gate; None where there is no convolution."""
    convs = [module for module in attention.modules() if isinstance(module, nn.Conv2d)]
    return convs[-1] if convs else None


def _outputs(model: nn.Module) -> list[nn.Module]:
    """The layers whose outputs are those of the network, which keep their number."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]
