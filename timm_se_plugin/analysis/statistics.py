"""Mean and deviation of every gate by layer, class and channel, in one pass over the data."""

import csv
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .gates import Gate, find_gates, kernel_names, observed

__all__ = ['GateStatistics', 'LayerStatistics', 'check_ending', 'check_statistics', 'gate_statistics']

_logger = logging.getLogger(__name__)
_NEAR = 0.05  # a gate is saturated if at most this share of its range lies between it and an end of the range


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one layer's gates over a data set, in float64.

    The value of a spatial gate for an image is its mean over the map.

    Args:
        name: name of the attention module.
        gate: class of the gate's activation.
        stage: part of the network that holds the attention.
        branches: names of the M branches that a Selective Kernel selects from; one empty name for other attentions.
        counts: number of images of each of the K classes, (K,).
        means: mean of each gate over the images of each class, (K, M, C); NaN for a class without images.
        variances: variance of each gate over the images of each class, without Bessel's correction, (K, M, C).
        lows: share of the values that are at most 5 % of the gate's range away from its lower end, (K, M, C); NaN for a
            gate that is not bounded.
        highs: the same share for the upper end of the range.
    """

    name: str
    gate: str
    stage: str
    branches: tuple[str, ...]
    counts: Tensor
    means: Tensor
    variances: Tensor
    lows: Tensor
    highs: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over all images, (M, C)."""
        return self._average(self.means)

    @property
    def between(self) -> Tensor:
        """Variance of the classes' means, each weighted by its number of images, (M, C)."""
        return self._average((self.means - self.mean) ** 2)

    @property
    def within(self) -> Tensor:
        """Mean of the classes' variances, each weighted by its number of images, (M, C)."""
        return self._average(self.variances)

    @property
    def std(self) -> Tensor:
        """Standard deviation over all images, (M, C)."""
        return (self.between + self.within).sqrt()

    @property
    def specificity(self) -> float:
        """Variance between classes over variance within, each summed over the channels; 0 for gates that are constant.

        Gates that do not depend on the class have about :attr:`chance`, and not 0.
        """
        between, within = float(self.between.sum()), float(self.within.sum())
        rounding = 1e-24 * float(self.mean.square().sum())  # of means of equal numbers, squared
        return between / within if within > rounding else math.inf if between > rounding else 0.0

    @property
    def chance(self) -> float:
        """About the mean :attr:`specificity` of gates that do not depend on the class.

        It is (K - 1) / (N - K) for N images of K classes, and NaN if each class has one image. For one channel
        ``specificity / chance`` is the F statistic of a one-way analysis of variance.
        """
        images, classes = int(self.counts.sum()), int((self.counts > 0).sum())
        return (classes - 1) / (images - classes) if images > classes else math.nan

    @property
    def saturation(self) -> tuple[float, float]:
        """Share of all values near the lower and near the upper end of the gate's range."""
        return float(self._average(self.lows).mean()), float(self._average(self.highs).mean())

    def _average(self, values: Tensor) -> Tensor:
        weights = (self.counts.double() / self.counts.sum())[:, None, None]
        return torch.where(weights > 0, values * weights, 0).sum(0)


@dataclass(frozen=True)
class GateStatistics:
    """Statistics of every gate of a network over a data set."""

    layers: tuple[LayerStatistics, ...]
    classes: tuple[str, ...]

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.layers[0].counts.sum())

    def layer(self, name: str) -> LayerStatistics:
        """The statistics of the attention called `name`.

        Raises:
            ValueError: no attention has this name.
        """
        found = [layer for layer in self.layers if layer.name == name]
        if not found:
            names = ', '.join(layer.name for layer in self.layers)
            raise ValueError(f'no attention is called {name!r}; the statistics have {names}')
        return found[0]

    def class_index(self, name: str) -> int:
        """Index of a class that has images.

        Raises:
            ValueError: no such class, or it has no images.
        """
        if name not in self.classes:
            raise ValueError(f'no class is called {name!r}; the classes are {", ".join(self.classes)}')
        index = self.classes.index(name)
        if not self.layers[0].counts[index]:
            raise ValueError(f'the class {name!r} has no images; classes with images: {", ".join(self.seen_classes)}')
        return index

    @property
    def seen_classes(self) -> list[str]:
        """Classes that have images."""
        return [name for name, count in zip(self.classes, self.layers[0].counts.tolist(), strict=True) if count]

    @property
    def last_of_stages(self) -> list[LayerStatistics]:
        """The last attention of each stage."""
        return list({layer.stage: layer for layer in self.layers}.values())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The tidy table: one row for each layer, class with images, branch and channel."""
        for depth, layer in enumerate(self.layers):
            numbers = [t.tolist() for t in (layer.means, layer.variances.sqrt(), layer.lows, layer.highs)]
            for k, name in enumerate(self.classes):
                if not layer.counts[k]:
                    continue
                for m, branch in enumerate(layer.branches):
                    for c in range(layer.means.shape[2]):
                        mean, std, low, high = (values[k][m][c] for values in numbers)
                        yield {
                            'layer': layer.name, 'depth': depth, 'gate': layer.gate, 'class': name,
                            'images': int(layer.counts[k]), 'branch': branch, 'channel': c,
                            'mean': mean, 'std': std, 'low': low, 'high': high}

    def layer_rows(self) -> Iterator[dict[str, Any]]:
        """One row for each layer and branch: its gates over all images and channels."""
        for depth, layer in enumerate(self.layers):
            low, high = layer.saturation
            for branch, mean, std in zip(layer.branches, layer.mean, layer.std, strict=True):
                yield {
                    'layer': layer.name, 'depth': depth, 'gate': layer.gate, 'branch': branch,
                    'channels': len(mean), 'images': int(layer.counts.sum()), 'mean': float(mean.mean()),
                    'std': float(std.mean()), 'channel_std': float(mean.std(correction=0)),
                    'specificity': layer.specificity, 'chance': layer.chance, 'low': low, 'high': high}

    def save(self, path: str | Path) -> None:
        """Write the tidy table as ``.csv``, or as ``.parquet`` where pyarrow is installed, completely or not at all.

        Raises:
            ValueError: a name with another ending, or ``.parquet`` without pyarrow.
        """
        path = Path(path)
        check_ending(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f'{path.name}.part')  # a table may be too large to be kept in memory as text
        try:
            if path.suffix == '.parquet':
                import pyarrow
                from pyarrow import parquet
                parquet.write_table(pyarrow.Table.from_pylist(list(self.rows())), part)
            else:
                self._write_csv(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _write_csv(self, path: Path) -> None:
        with path.open('w', newline='', encoding='utf-8') as file:
            rows = self.rows()
            first = next(rows)
            writer = csv.DictWriter(file, list(first), lineterminator='\n')
            writer.writeheader()
            writer.writerow(first)
            writer.writerows(rows)


def check_ending(path: Path) -> None:
    """Refuse the name of a table that cannot be written.

    Raises:
        ValueError: a name with another ending than .csv and .parquet, or .parquet without pyarrow.
    """
    if path.suffix not in ('.csv', '.parquet'):
        raise ValueError(f'{path.name!r} does not end in .csv or .parquet, the formats of a table')
    if path.suffix == '.parquet':
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError('.parquet needs the package pyarrow, which is missing; .csv works without it') from error


def check_statistics(statistics: GateStatistics, gates: Sequence[Gate]) -> None:
    """Raise ValueError unless all layers of the statistics are gates of a network, by their names."""
    own = [gate.name for gate in gates]
    others = [layer.name for layer in statistics.layers if layer.name not in own]
    if others:
        raise ValueError(f'the statistics are of another network: they have {others[0]}, and the network has '
                         f'{", ".join(own[:3])}{", …" if len(own) > 3 else ""}')


def float64_device(device: torch.device) -> torch.device:
    """The device; the CPU instead of Apple's GPU, which has no float64."""
    return torch.device('cpu') if device.type == 'mps' else device


class _Sums:
    """Count, mean and sum of squared deviations of each class, updated batch by batch (Chan et al., 1979).

    Unlike a sum of squares, this loses no digits where the deviation is small beside the mean. The sums are on the
    given device, or on the CPU if the device has no float64.
    """

    def __init__(self, classes: int, branches: int, channels: int, device: torch.device) -> None:
        shape, device = (classes, branches, channels), float64_device(device)
        self.counts = torch.zeros(classes, 1, 1, dtype=torch.float64, device=device)
        self.means, self.squares, self.lows, self.highs = (
            torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(4))

    def add(self, values: Tensor, labels: Tensor, bounds: tuple[float, float] | None) -> None:
        """Add a batch: values (N, M, C, P) and labels (N,)."""
        x, labels = values.to(self.counts.device).double(), labels.to(self.counts.device)
        present, inverse = labels.unique(return_inverse=True)
        if bounds:
            low, high = bounds
            near = _NEAR * (high - low)
            for shares, flags in ((self.lows, x <= low + near), (self.highs, x >= high - near)):
                shares.index_add_(0, labels, flags.double().mean(3))
        x = x.mean(3)
        zeros = x.new_zeros(len(present), *x.shape[1:])
        counts = inverse.bincount(minlength=len(present)).double()[:, None, None]
        means = zeros.index_add(0, inverse, x) / counts
        squares = zeros.index_add(0, inverse, (x - means[inverse]) ** 2)
        before = self.counts[present]
        total, delta = before + counts, means - self.means[present]
        self.means[present] += delta * counts / total
        self.squares[present] += squares + delta ** 2 * before * counts / total
        self.counts[present] = total

    def gather(self) -> None:
        """Combine the sums of all processes, in each of them."""
        counts, means = self.counts.clone(), self.means.clone()
        dist.all_reduce(self.counts)
        self.means.mul_(counts)
        dist.all_reduce(self.means)
        self.means.div_(self.counts.clamp(min=1))
        self.squares += counts * (means - self.means) ** 2
        for sums in (self.squares, self.lows, self.highs):
            dist.all_reduce(sums)

    def result(self, gate: Gate, branches: list[str]) -> LayerStatistics:
        """The statistics of the images that were added."""
        counts = self.counts.cpu()
        def per_image(sums: Tensor) -> Tensor:
            return sums.cpu() / counts  # 0 / 0, which is NaN, for a class without images
        unbounded = torch.full_like(self.lows.cpu(), math.nan)
        return LayerStatistics(
            gate.name, gate.type, gate.stage, tuple(branches), counts.flatten().long(),
            torch.where(counts > 0, self.means.cpu(), math.nan), per_image(self.squares),
            per_image(self.lows) if gate.bounds else unbounded, per_image(self.highs) if gate.bounds else unbounded)


def gate_statistics(
        model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str],
) -> GateStatistics:
    """Statistics of every gate, by class; memory does not grow with the data set.

    Under ``torch.distributed`` each process passes its own batches, and each gets the statistics of all images.

    Args:
        model: any network in which :func:`~timm_se_plugin.analysis.find_gates` finds gates; it is not changed.
        batches: images (N, C, H, W) and labels (N,); an image with a negative label is left out.
        classes: names of the classes.

    Raises:
        ValueError: no gate, no image, labels that are no indices, a label without a class, a gate that is NaN or
            infinite, or one that the network does not compute exactly once for each image.
    """
    gates = find_gates(model)
    device = next(model.parameters()).device
    sums: dict[str, _Sums] = {}
    labels = torch.zeros(0)
    start, seen = 0, False
    called: set[str] = set()

    def see(gate: Gate, values: Tensor) -> None:
        if gate.name in called:
            raise ValueError(f'{gate.name} computes its gate more than once for an image, which gives no single value')
        called.add(gate.name)
        if len(values) != len(labels):
            raise ValueError(f'{gate.name} computes {len(values)} gates for {len(labels)} images, not one for each')
        if not values.isfinite().all():
            bad = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(f'the gate of {gate.name} is NaN or infinite for image {start + bad} of this process')
        if gate.name not in sums:
            sums[gate.name] = _Sums(len(classes), values.shape[1], values.shape[2], device)
        known = labels >= 0
        sums[gate.name].add(values[known], labels[known], gate.bounds)

    with observed(model, gates, see):
        for x, y in batches:
            if y.ndim != 1 or y.is_floating_point():
                raise ValueError(
                    f'labels of shape {tuple(y.shape)} and {y.dtype} are not one class index for each image')
            labels = y.to(device).long()
            if len(y) and int(y.max()) >= len(classes):
                raise ValueError(f'the data has the label {int(y.max())}, but there are only {len(classes)} classes')
            if (labels >= 0).any():
                seen = True
                called.clear()
                model(x.to(device))
            start += len(labels)
    _gather(gates, sums, len(classes), device)
    if not sums and not seen:
        raise ValueError('the data set has no image with a label')
    silent = [gate.name for gate in gates if gate.name not in sums]
    if silent:
        raise ValueError(f'the network did not compute the gates of {", ".join(silent)}')
    result = GateStatistics(
        tuple(sums[gate.name].result(gate, kernel_names(model, gate)) for gate in gates), tuple(classes))
    absent = sorted(set(classes) - set(result.seen_classes))
    if absent:
        more = f' and {len(absent) - 10} more' if len(absent) > 10 else ''
        _logger.warning('classes without images have no statistics: %s%s', ', '.join(absent[:10]), more)
    return result


def _gather(gates: list[Gate], sums: dict[str, _Sums], classes: int, device: torch.device) -> None:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    own = {name: (layer.means.shape[1], layer.means.shape[2]) for name, layer in sums.items()}
    of_processes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_processes, own)
    shapes = {name: shape for found in of_processes for name, shape in found.items()}
    for gate in gates:  # a process without images has no sums yet
        if gate.name in shapes:
            branches, channels = shapes[gate.name]
            sums.setdefault(gate.name, _Sums(classes, branches, channels, device)).gather()
