"""Figures in the papers' manner."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from .scale import ScaleStatistics
from .statistics import GateStatistics, LayerStatistics

__all__ = [
    'draw_activations', 'draw_depth', 'draw_deviations', 'draw_gate_maps', 'draw_scale', 'sampled_channels',
    'shown_layers']


def sampled_channels(channels: int, count: int = 50) -> list[int]:
    """Evenly spaced channels, as many as the papers show."""
    return np.linspace(0, channels - 1, min(count, channels)).round().astype(int).tolist()


def shown_layers(statistics: GateStatistics) -> list[LayerStatistics]:
    """The last attention of each stage, and of the last stage so many more that they are nine; SE paper, Figure 6."""
    shown = {layer.name for layer in statistics.last_of_stages}
    last = [layer.name for layer in statistics.layers if layer.stage == statistics.layers[-1].stage]
    shown.update(last[:-1][-(9 - len(shown)):] if len(shown) < 9 else ())
    return [layer for layer in statistics.layers if layer.name in shown]


@contextmanager
def _axes(count: int, path: str | Path, title: str, columns: int = 3, size: float = 4.2) -> Iterator[list[Any]]:
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    columns = min(columns, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns, 0.72 * size * rows), squeeze=False)
    for axis in axes.flat[count:]:
        axis.axis('off')
    yield list(axes.flat[:count])
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.05 if figure.legends else 0, 1, 1))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_activations(
        statistics: GateStatistics, classes: Sequence[str], path: str | Path, title: str = 'mean gate by class',
) -> None:
    """Mean gate of 50 channels for a few classes and over all, one panel for each layer (SE paper, Figure 6).

    Raises:
        ValueError: an unknown class, or one without images.
    """
    indices = [statistics.class_index(name) for name in classes]
    layers = shown_layers(statistics)
    with _axes(len(layers), path, title) as axes:
        for axis, layer in zip(axes, layers, strict=True):
            channels = sampled_channels(layer.means.shape[2])
            for name, k in zip(classes, indices, strict=True):
                axis.plot(layer.means[k, -1, channels].numpy(), linewidth=1, label=name)
            axis.plot(layer.mean[-1, channels].numpy(), linewidth=1, color='black', linestyle='--', label='all')
            _finish(axis, layer)
        _legend_below(axes)


def draw_deviations(
        statistics: GateStatistics, classes: Sequence[str], path: str | Path, title: str = 'mean gate ± deviation',
) -> None:
    """Mean and standard deviation of the gate inside two classes (SE paper, Figure 7).

    Raises:
        ValueError: an unknown class, or one without images.
    """
    indices = [statistics.class_index(name) for name in classes]
    layers = shown_layers(statistics)
    with _axes(len(layers), path, title) as axes:
        for axis, layer in zip(axes, layers, strict=True):
            channels = sampled_channels(layer.means.shape[2])
            for i, (name, k) in enumerate(zip(classes, indices, strict=True)):
                mean = layer.means[k, -1, channels].numpy()
                std = layer.variances[k, -1, channels].sqrt().numpy()
                axis.plot(mean, linewidth=1, label=name, color=f'C{i}')
                axis.fill_between(range(len(channels)), mean - std, mean + std, alpha=0.25, color=f'C{i}')
            _finish(axis, layer)
        _legend_below(axes)


def _legend_below(axes: list[Any]) -> None:
    """One legend for all panels, where it covers none."""
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc='lower center', ncols=6, fontsize=8, frameon=False)


def _finish(axis: Any, layer: LayerStatistics) -> None:
    axis.set_title(layer.name + (f': weight of {layer.branches[-1]}' if layer.branches[-1] else ''), fontsize=9)
    axis.set_xlabel('channel (sampled evenly)', fontsize=8)
    axis.set_ylabel('gate', fontsize=8)
    if layer.gate != 'ReLU':
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0), max(high, 1))
    axis.grid(alpha=0.3)


def draw_depth(statistics: GateStatistics, path: str | Path, title: str = 'gates by depth') -> None:
    """Class specificity of each layer beside that of chance, and the share of its gates near an end of their range."""
    layers = statistics.layers
    names = [layer.name for layer in layers]
    with _axes(2, path, title, columns=2, size=6) as axes:
        axes[0].plot([layer.specificity for layer in layers], marker='o')
        axes[0].plot([layer.chance for layer in layers], color='black', linestyle='--', label='of gates without class')
        axes[0].legend(fontsize=8)
        axes[0].set_ylabel('variance between classes / within')
        axes[0].set_ylim(bottom=0)
        lows, highs = zip(*(layer.saturation for layer in layers), strict=True)
        x = np.arange(len(layers))
        axes[1].bar(x - 0.2, lows, 0.4, label='near the lower end')
        axes[1].bar(x + 0.2, highs, 0.4, label='near the upper end')
        axes[1].set_ylim(0, max(0.01, 1.05 * max(*lows, *highs)))
        axes[1].set_ylabel('share of gates')
        axes[1].legend(fontsize=8)
        for axis in axes:
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            axis.grid(alpha=0.3)


def draw_scale(scales: ScaleStatistics, path: str | Path, title: str = 'attention and the size of the object') -> None:
    """Weight of the largest kernel by channel, its difference to the smallest's by unit (SK paper, Figures 3, 4)."""
    layers = scales.statistics[0].last_of_stages
    with _axes(len(layers) + 1, path, title) as axes:
        for axis, layer in zip(axes, layers, strict=False):
            weights = scales.attention(layer.name)
            # The paper averages adjacent channels.
            smooth = F.adaptive_avg_pool1d(weights, min(25, weights.shape[1]))
            for scale, line in zip(scales.scales, smooth, strict=True):
                axis.plot(line.numpy(), linewidth=1, label=f'{scale:g}x')
            axis.set_title(f'{layer.name}: weight of {layer.branches[-1]}', fontsize=9)
            axis.set_xlabel('channels, adjacent ones averaged', fontsize=8)
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=7)
        for scale, line in zip(scales.scales, scales.difference(), strict=True):
            axes[-1].plot(line.numpy(), marker='.', linewidth=1, label=f'{scale:g}x')
        branches = layers[0].branches
        axes[-1].set_title(f'mean({branches[-1]}) - mean({branches[0]}) by unit', fontsize=9)
        axes[-1].set_xticks(range(len(scales.units)), scales.units, rotation=90, fontsize=6)
        axes[-1].axhline(0, color='black', linewidth=0.8)
        axes[-1].grid(alpha=0.3)
        axes[-1].legend(fontsize=7)


def draw_gate_maps(pictures: Tensor, maps: Tensor, path: str | Path, title: str = 'gate over the image') -> None:
    """Images (N, 3, H, W) in 0..1 and their gate maps (N, h, w) beside them, all in the colours of one range."""
    maps = maps.float()
    low, high = float(maps.min()), float(maps.max())
    title = f'{title}\ndark {low:.3g} to light {high:.3g}'
    with _axes(2 * len(pictures), path, title, columns=8, size=2) as axes:
        for i, (picture, values) in enumerate(zip(pictures, maps, strict=True)):
            axes[2 * i].imshow(picture.movedim(0, 2).clamp(0, 1).numpy())
            axes[2 * i + 1].imshow(values.numpy(), cmap='viridis', vmin=low, vmax=high)
            for axis in axes[2 * i:2 * i + 2]:
                axis.axis('off')
