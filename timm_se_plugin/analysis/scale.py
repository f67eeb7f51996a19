"""Selective Kernel attention against the size of the object (SK paper, section 4.3, Figures 3 and 4)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gates import find_gates
from .statistics import GateStatistics, gate_statistics

__all__ = ['SCALES', 'ScaleStatistics', 'enlarged', 'scale_statistics']

SCALES = (1.0, 1.25, 1.5, 1.75, 2.0)


def enlarged(x: Tensor, scale: float) -> Tensor:
    """Images with their centre enlarged: the central 1 / scale of each side, resized to the whole size.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Raises:
        ValueError: a scale below 1.
    """
    if not scale >= 1:
        raise ValueError(f'scale={scale} is below 1, and would need pixels outside the image')
    H, W = x.shape[2:]
    height, width = round(H / scale), round(W / scale)
    if (height, width) == (H, W):
        return x
    top, left = (H - height) // 2, (W - width) // 2
    crop = x[:, :, top:top + height, left:left + width]
    return F.interpolate(crop, size=(H, W), mode='bicubic', align_corners=False)


@dataclass(frozen=True)
class ScaleStatistics:
    """Attention of each Selective Kernel unit at each enlargement.

    Args:
        scales: enlargements of the image's centre.
        statistics: statistics of the same images at each scale.
    """

    scales: tuple[float, ...]
    statistics: tuple[GateStatistics, ...]

    @property
    def units(self) -> list[str]:
        """Names of the units."""
        return [layer.name for layer in self.statistics[0].layers]

    def attention(self, unit: str) -> Tensor:
        """Mean weight of the largest kernel by channel, (scales, C)."""
        return torch.stack([one.layer(unit).mean[-1] for one in self.statistics])

    def difference(self) -> Tensor:
        """Mean weight of the largest kernel minus that of the smallest, (scales, units); 5x5 - 3x3 in the paper."""
        return torch.stack([
            torch.stack([layer.mean[-1].mean() - layer.mean[0].mean() for layer in one.layers])
            for one in self.statistics])

    def rows(self) -> Iterable[dict[str, Any]]:
        """Tidy table: one row for each unit, scale and branch."""
        for scale, one in zip(self.scales, self.statistics, strict=True):
            for depth, layer in enumerate(one.layers):
                for m, branch in enumerate(layer.branches):
                    yield {'unit': layer.name, 'depth': depth, 'scale': scale, 'branch': branch,
                           'images': one.images, 'mean': float(layer.mean[m].mean())}


def scale_statistics(
        model: nn.Module, batches: Any, classes: Sequence[str], scales: Sequence[float] = SCALES,
) -> ScaleStatistics:
    """Attention of a Selective Kernel network for images whose centre is enlarged.

    Args:
        model: a network with Selective Kernels.
        batches: a function without arguments that returns the batches of images and labels, called for each scale.
        classes: names of the classes.
        scales: factors of the enlargement, 1 or more.

    Raises:
        ValueError: the network has no Selective Kernel, or as :func:`gate_statistics`.
    """
    kernels = {gate.name for gate in find_gates(model) if gate.selects}
    if not kernels:
        raise ValueError(f'{type(model).__name__} has no Selective Kernel')
    statistics = []
    for scale in scales:
        found = gate_statistics(model, ((enlarged(x, scale), y) for x, y in batches()), classes)
        layers = tuple(layer for layer in found.layers if layer.name in kernels)
        statistics.append(GateStatistics(layers, found.classes))
    return ScaleStatistics(tuple(scales), tuple(statistics))
