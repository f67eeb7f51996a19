"""Gates of single images: images with unusual gates, and maps of spatial gates."""

import heapq
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .gates import Gate, find_gates, observed
from .statistics import GateStatistics, check_statistics, float64_device

__all__ = ['UnusualImage', 'gate_map', 'gate_maps', 'unusual_images']


@dataclass(frozen=True)
class UnusualImage:
    """An image whose gates differ from those of other images.

    Args:
        deviation: root mean square, over all layers and channels, of the gate's distance from its mean over all
            images, in standard deviations; about 1 for a usual image.
        layer: name of the attention in which the deviation is largest.
        image: the network's input, (C, H, W).
        label: index of the image's class.
        index: position of the image in the data, counted from 0.
    """

    deviation: float
    layer: str
    image: Tensor
    label: int
    index: int


def unusual_images(
        model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], statistics: GateStatistics, count: int = 12,
) -> list[UnusualImage]:
    """The images whose gates differ most from the mean, the most unusual first; only these are kept in memory.

    Args:
        model: the network of the statistics.
        batches: images and labels, those of the statistics or others; images with a negative label are left out.
        statistics: result of :func:`~timm_se_plugin.analysis.gate_statistics`.
        count: number of images.

    Raises:
        ValueError: the network has no gate, or the statistics are of another network.
    """
    gates = find_gates(model)
    check_statistics(statistics, gates)
    if count < 1:
        return []
    device = next(model.parameters()).device
    exact = float64_device(device)
    usual = {layer.name: (layer.mean.to(exact), layer.std.to(exact)) for layer in statistics.layers}
    gates = [gate for gate in gates if gate.name in usual]
    distances: dict[str, Tensor] = {}

    def see(gate: Gate, values: Tensor) -> None:
        mean, std = usual[gate.name]
        distance = (values.to(exact).double().mean(3) - mean) / std.clamp(min=1e-12)
        distances[gate.name] = torch.where(std > 0, distance ** 2, 0).flatten(1).mean(1)

    heap: list[tuple[float, int, UnusualImage]] = []
    start = 0
    with observed(model, gates, see):
        for x, y in batches:
            model(x.to(device))
            squares = torch.stack(list(distances.values()))  # (layers, N)
            total = squares.mean(0).sqrt().tolist()
            worst = squares.argmax(0).tolist()
            for i, deviation in enumerate(total):
                if int(y[i]) < 0 or (len(heap) == count and deviation <= heap[0][0]):
                    continue
                found = UnusualImage(
                    deviation, list(distances)[worst[i]], x[i].cpu().clone(), int(y[i]), start + i)
                heapq.heappush(heap, (deviation, -start - i, found))
                if len(heap) > count:
                    heapq.heappop(heap)
            start += len(x)
    return [found for _, _, found in sorted(heap, reverse=True)]


def gate_map(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """Map of a spatial gate, averaged over the channels; (N, height, width) of the layer's feature map.

    Args:
        model: the network.
        layer: name of an attention.
        x: images, (N, C, H, W).

    Raises:
        ValueError: there is no such attention, or its gate is not spatial.
    """
    maps = gate_maps(model, x)
    if layer not in maps:
        raise ValueError(f'no attention called {layer!r} has a gate for every position, as with attn_squeeze="none"; '
                         f'those that have one: {", ".join(maps) or "none"}')
    return maps[layer]


def gate_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The result of :func:`gate_map` for each attention with a spatial gate, by name, from one forward pass."""
    outputs: dict[Gate, Tensor] = {}

    def keep(gate: Gate) -> Callable[[nn.Module, tuple, Tensor], None]:
        return lambda module, args, output: outputs.__setitem__(gate, output)

    with observed(model, [], lambda gate, values: None), ExitStack() as hooks:
        for gate in find_gates(model):
            hooks.enter_context(gate.module.register_forward_hook(keep(gate)))
        model(x.to(next(model.parameters()).device))
    return {gate.name: output.mean(1).cpu() for gate, output in outputs.items() if not gate.selects and (
        not gate.channels_last and output.ndim == 4 and output.shape[2] * output.shape[3] > 1)}
