"""Mean and deviation of every channel's gate by layer and class, in one pass over the data."""

import csv
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .gates import Gate, find_gates, kernel_names, observed

__all__ = ['GateStatistics', 'LayerStatistics', 'check_ending', 'gate_statistics']

_logger = logging.getLogger(__name__)
_NEAR = 0.05  # of its range: a gate so close to an end is saturated


@dataclass(frozen=True)
class LayerStatistics:
    """What one layer's gates did, in float64.

    The value of an image is the mean of its gate over the map where the gate is spatial.

    Args:
        name: of the attention module.
        gate: class of its activation.
        stage: of the network that it is in.
        branches: names of the branches that it selects from; one empty name if it does not.
        counts: images of each class, (K,).
        means: mean over the images of a class, (K, M, C) with M branches; NaN for a class without images.
        variances: variance over them, divided by their number, (K, M, C).
        lows: share of the values within 5 % of the range from its lower end, (K, M, C); NaN without ends.
        highs: the same for the upper end.
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
        """Variance of the classes' means around the mean, each class as often as it has images, (M, C)."""
        return self._average((self.means - self.mean) ** 2)

    @property
    def within(self) -> Tensor:
        """Mean variance inside a class, (M, C)."""
        return self._average(self.variances)

    @property
    def std(self) -> Tensor:
        """Deviation over all images, (M, C)."""
        return (self.between + self.within).sqrt()

    @property
    def specificity(self) -> float:
        """Variance between classes over variance within, each summed over channels; 0 for a gate that never moves.

        Of gates that do not depend on the class it is near :attr:`chance`, and not 0.
        """
        between, within = float(self.between.sum()), float(self.within.sum())
        return between / within if within > 0 else math.inf if between > 0 else 0.0

    @property
    def chance(self) -> float:
        """What :attr:`specificity` is on average, nearly, of gates that do not depend on the class.

        (K - 1) / (N - K) for N images of K classes; NaN if each class has one image.
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
        """A layer by its name.

        Raises:
            ValueError: there is none.
        """
        found = [layer for layer in self.layers if layer.name == name]
        if not found:
            names = ', '.join(layer.name for layer in self.layers)
            raise ValueError(f'no attention is called {name!r}; allowed: {names}')
        return found[0]

    def class_index(self, name: str) -> int:
        """Index of a class that has images.

        Raises:
            ValueError: no such class, or it has no images.
        """
        if name not in self.classes:
            raise ValueError(f'no class is called {name!r}; allowed: {", ".join(self.classes)}')
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
        """The last attention of each stage (of a Selective Kernel network, its last unit)."""
        return list({layer.stage: layer for layer in self.layers}.values())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The tidy table: one row for each layer, class, branch and channel; classes without images have none."""
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

    def save(self, path: str | Path) -> None:
        """Write the tidy table as ``.csv``, or as ``.parquet`` where pyarrow is installed.

        Raises:
            ValueError: another ending, or no pyarrow.
        """
        path = Path(path)
        check_ending(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.parquet':
            import pyarrow
            from pyarrow import parquet
            parquet.write_table(pyarrow.Table.from_pylist(list(self.rows())), path)
            return
        with path.open('w', newline='', encoding='utf-8') as file:
            rows = self.rows()
            first = next(rows)
            writer = csv.DictWriter(file, list(first), lineterminator='\n')
            writer.writeheader()
            writer.writerow(first)
            writer.writerows(rows)


def check_ending(path: Path) -> None:
    """Refuse a table that cannot be written.

    Raises:
        ValueError: an ending other than .csv and .parquet, or .parquet without pyarrow.
    """
    if path.suffix not in ('.csv', '.parquet'):
        raise ValueError(f'{path.name!r} is not allowed; allowed: a name that ends in .csv or .parquet')
    if path.suffix == '.parquet':
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError('.parquet needs the package pyarrow; allowed without it: .csv') from error


class _Sums:
    """Count, mean and sum of squared deviations of each class, updated batch by batch (Chan et al., 1979).

    Unlike sums of squares they lose no digits where the deviation is small beside the mean.
    """

    def __init__(self, classes: int, branches: int, channels: int, device: torch.device) -> None:
        shape = (classes, branches, channels)
        self.counts = torch.zeros(classes, 1, 1, dtype=torch.float64, device=device)
        self.means, self.squares, self.lows, self.highs = (
            torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(4))

    def add(self, values: Tensor, labels: Tensor, bounds: tuple[float, float] | None) -> None:
        """A batch: values (N, M, C, P), labels (N,)."""
        present, inverse = labels.unique(return_inverse=True)
        x = values.double()
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
        """Add up those of all processes."""
        counts, means = self.counts.clone(), self.means.clone()
        dist.all_reduce(self.counts)
        self.means.mul_(counts)
        dist.all_reduce(self.means)
        self.means.div_(self.counts.clamp(min=1))
        self.squares += counts * (means - self.means) ** 2
        for sums in (self.squares, self.lows, self.highs):
            dist.all_reduce(sums)

    def result(self, gate: Gate, branches: list[str]) -> LayerStatistics:
        """What the sums say."""
        counts = self.counts.cpu()
        def per_image(sums: Tensor) -> Tensor:
            return sums.cpu() / counts  # 0 / 0: NaN without images
        unbounded = torch.full_like(self.lows.cpu(), math.nan)
        return LayerStatistics(
            gate.name, gate.type, gate.stage, tuple(branches), counts.flatten().long(),
            torch.where(counts > 0, self.means.cpu(), math.nan), per_image(self.squares),
            per_image(self.lows) if gate.bounds else unbounded, per_image(self.highs) if gate.bounds else unbounded)


def gate_statistics(
        model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], classes: Sequence[str],
) -> GateStatistics:
    """Statistics of every gate, by class; memory does not grow with the data set.

    Under ``torch.distributed`` each process gives its own batches, and all get the statistics of all images.

    Args:
        model: any network with SE, SK or timm's own attentions of their kind; it is left as it was.
        batches: images (N, C, H, W) and labels (N,); an image with a negative label is left out.
        classes: names of the classes.

    Raises:
        ValueError: no attention, no images, a label without a class, a gate that is not finite never or twice computed.
    """
    gates = find_gates(model)
    device = next(model.parameters()).device
    sums: dict[str, _Sums] = {}
    labels = torch.zeros(0)
    start, seen = 0, False
    called: set[str] = set()

    def see(gate: Gate, values: Tensor) -> None:
        if gate.name in called:
            raise ValueError(f'{gate.name} computes its gate more than once for an image; allowed: gates computed once')
        called.add(gate.name)
        if len(values) != len(labels):
            raise ValueError(f'{gate.name} has {len(values)} gates for {len(labels)} images; allowed: one for each')
        if not values.isfinite().all():
            bad = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(f'the gate of {gate.name} is not finite for image {start + bad} of this process')
        if gate.name not in sums:
            sums[gate.name] = _Sums(len(classes), values.shape[1], values.shape[2], device)
        known = labels >= 0
        sums[gate.name].add(values[known], labels[known], gate.bounds)

    with observed(model, gates, see):
        for x, y in batches:
            labels = y.to(device)
            if len(y) and int(y.max()) >= len(classes):
                raise ValueError(f'the data has a label {int(y.max())}, and there are {len(classes)} classes')
            if (labels >= 0).any():
                seen = True
                called.clear()
                model(x.to(device))
            start += len(labels)
    _gather(gates, sums, len(classes), device)
    if not sums and not seen:
        raise ValueError('the data set is empty: there is no image with a label')
    silent = [gate.name for gate in gates if gate.name not in sums]
    if silent:
        raise ValueError(f'the network did not compute the gates of {", ".join(silent)}')
    result = GateStatistics(
        tuple(sums[gate.name].result(gate, kernel_names(model, gate)) for gate in gates), tuple(classes))
    absent = sorted(set(classes) - set(result.seen_classes))
    if absent:
        _logger.warning('no images, so no statistics, of %d of the classes: %s', len(absent), ', '.join(absent[:10]))
    return result


def _gather(gates: list[Gate], sums: dict[str, _Sums], classes: int, device: torch.device) -> None:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    mine = {name: (layer.means.shape[1], layer.means.shape[2]) for name, layer in sums.items()}
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    shapes = {name: shape for theirs in everyones for name, shape in theirs.items()}
    for gate in gates:  # a process without images has no sums
        if gate.name in shapes:
            branches, channels = shapes[gate.name]
            sums.setdefault(gate.name, _Sums(classes, branches, channels, device)).gather()
