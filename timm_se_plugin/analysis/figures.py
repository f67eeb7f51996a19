"""The papers' figures. Each function writes an image file (PNG, SVG or PDF, by its ending) and returns the figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ..files.fonts import save_figure
from .scale import ScaleStatistics
from .statistics import GateStatistics, LayerStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    'draw_activations', 'draw_depth', 'draw_deviations', 'draw_gate_maps', 'draw_scale', 'sampled_channels',
    'shown_layers']

_LINES = ('-', ':', '-.', (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))  # of each ten classes; matplotlib has ten colours


def sampled_channels(channels: int) -> list[int]:
    """Fifty evenly spaced channels, as in the SE paper's Figure 6; all channels where there are fewer."""
    return np.linspace(0, channels - 1, min(50, channels)).round().astype(int).tolist()


def shown_layers(statistics: GateStatistics) -> list[LayerStatistics]:
    """The last attention of each stage, and more of the last stage, up to nine in all (SE paper, Figure 6)."""
    shown = {layer.name for layer in statistics.last_of_stages}
    last = [layer.name for layer in statistics.layers if layer.stage == statistics.layers[-1].stage]
    shown.update(last[:-1][-(9 - len(shown)):] if len(shown) < 9 else ())
    return [layer for layer in statistics.layers if layer.name in shown]


def draw_activations(
        statistics: GateStatistics, classes: Sequence[str], path: str | Path, title: str = 'mean gate by class',
) -> 'Figure':
    """Draw the mean gate of 50 channels for some classes and for all images, layer by layer (SE paper, Figure 6).

    Raises:
        ValueError: an unknown class, or one without images.
    """
    return _draw_classes(statistics, classes, path, title, deviations=False)


def draw_deviations(
        statistics: GateStatistics, classes: Sequence[str], path: str | Path, title: str = 'mean gate ± deviation',
) -> 'Figure':
    """Draw the mean and standard deviation of the gate of 50 channels within each class (SE paper, Figure 7).

    Raises:
        ValueError: an unknown class, or one without images.
    """
    return _draw_classes(statistics, classes, path, title, deviations=True)


def _draw_classes(
        statistics: GateStatistics, classes: Sequence[str], path: str | Path, title: str, deviations: bool,
) -> 'Figure':
    indices = [statistics.class_index(name) for name in classes]
    layers = shown_layers(statistics)
    figure, charts = _charts(len(layers), title)
    for axes, layer in zip(charts, layers, strict=True):
        channels = sampled_channels(layer.means.shape[2])
        is_sampled = len(channels) < layer.means.shape[2]
        for i, (name, k) in enumerate(zip(classes, indices, strict=True)):
            mean = layer.means[k, -1, channels].numpy()
            # Matplotlib takes what lies between two $ for a formula, and leaves names with _ in front out of legends.
            label = (' ' if name.startswith('_') else '') + name.replace('$', r'\$')
            axes.plot(mean, linewidth=1, label=label, color=f'C{i}', linestyle=_LINES[i // 10 % len(_LINES)])
            if deviations:
                std = layer.variances[k, -1, channels].sqrt().numpy()
                axes.fill_between(range(len(channels)), mean - std, mean + std, alpha=0.25, color=f'C{i}')
        if not deviations:
            axes.plot(layer.mean[-1, channels].numpy(), linewidth=1, color='black', linestyle='--', label='all')
        axes.set_title(layer.name + (f': weight of {layer.branches[-1]}' if layer.branches[-1] else ''), fontsize=9)
        axes.set_xlabel('channel (sampled evenly)' if is_sampled else 'channel', fontsize=8)
        axes.locator_params('x', integer=True)
        axes.set_ylabel('gate', fontsize=8)
        if layer.gate != 'ReLU':
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0), max(high, 1))
    figure.legend(
        *charts[0].get_legend_handles_labels(), loc='outside lower center', ncols=6, fontsize=8, frameon=False)
    return _saved(figure, path)


def draw_depth(statistics: GateStatistics, path: str | Path, title: str = 'gates by depth') -> 'Figure':
    """Draw each layer's class specificity with that of chance, and its shares of gates near an end of their range.

    The second chart is left out where no gate is near an end, which the title then says, or no gate has an end.
    """
    layers = statistics.layers
    lows, highs = zip(*(layer.saturation for layer in layers), strict=True)
    shares = [share for share in (*lows, *highs) if not math.isnan(share)]
    if shares and not any(shares):
        title = f'{title}\nno gate is near an end of its range'
    figure, (specificity, *others) = _charts(2 if any(shares) else 1, title, columns=2, size=6)
    specificity.plot([layer.specificity for layer in layers], marker='o', label='of this network')
    specificity.plot([layer.chance for layer in layers], color='black', linestyle='--',
                     label='of gates that ignore the class')
    specificity.set_ylabel('variance between classes / within')
    specificity.set_ylim(bottom=0)
    x = np.arange(len(layers))
    for saturation in others:
        saturation.bar(x - 0.2, lows, 0.4, label='near the lower end')
        saturation.bar(x + 0.2, highs, 0.4, label='near the upper end')
        saturation.set_ylim(0, max(0.01, 1.05 * max(shares)))
        saturation.set_ylabel('share of gates')
    for axes in (specificity, *others):
        axes.set_xticks(x, [layer.name for layer in layers], rotation=90, fontsize=7)
        axes.legend(fontsize=8)
    return _saved(figure, path)


def draw_scale(
        scales: ScaleStatistics, path: str | Path, title: str = 'attention and the size of the object') -> 'Figure':
    """Draw the largest kernel's weight by channel, and minus the smallest's by unit (SK paper, Figures 3 and 4)."""
    layers = scales.statistics[0].last_of_stages
    figure, (*charts, units) = _charts(len(layers) + 1, title)
    for axes, layer in zip(charts, layers, strict=True):
        weights = scales.attention(layer.name)
        # The paper averages adjacent channels.
        smooth = F.adaptive_avg_pool1d(weights, min(25, weights.shape[1]))
        for scale, line in zip(scales.scales, smooth, strict=True):
            axes.plot(line.numpy(), linewidth=1, label=f'{scale:g}x')
        axes.set_title(f'{layer.name}: weight of {layer.branches[-1]}', fontsize=9)
        axes.set_xlabel('channel' if smooth.shape[1] == weights.shape[1] else 'channels, adjacent ones averaged',
                        fontsize=8)
        axes.set_ylabel('weight', fontsize=8)
        axes.locator_params('x', integer=True)
    for scale, line in zip(scales.scales, scales.difference(), strict=True):
        units.plot(line.numpy(), marker='.', linewidth=1, label=f'{scale:g}x')
    branches = layers[0].branches
    units.set_title(f'mean({branches[-1]}) - mean({branches[0]}) by unit', fontsize=9)
    units.set_xticks(range(len(scales.units)), scales.units, rotation=90, fontsize=6)
    units.set_ylabel('difference of weights', fontsize=8)
    units.axhline(0, color='black', linewidth=0.8)
    figure.legend(
        *units.get_legend_handles_labels(), loc='outside lower center', ncols=6, fontsize=8, frameon=False,
        title='size of the object', title_fontsize=8)
    return _saved(figure, path)


def draw_gate_maps(
        pictures: Tensor, maps: Tensor, path: str | Path, title: str = 'gate over the image') -> 'Figure':
    """Draw images (N, 3, H, W) in 0..1, each beside its gate map (N, h, w); all maps share one range of colours."""
    maps = maps.float()
    figure, charts = _charts(2 * len(pictures), title, columns=8, size=2)
    for axes in charts:
        axes.axis('off')
    for picture, values, axes, beside in zip(pictures, maps, charts[::2], charts[1::2], strict=True):
        axes.imshow(picture.movedim(0, 2).clamp(0, 1).numpy())
        shown = beside.imshow(values.numpy(), cmap='viridis', vmin=float(maps.min()), vmax=float(maps.max()))
    figure.colorbar(shown, ax=charts)
    return _saved(figure, path)


def _charts(count: int, title: str, columns: int = 3, size: float = 4.2) -> tuple['Figure', list['Axes']]:
    """A figure with a grid of `count` charts, each `size` inches wide."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size * columns, 0.72 * size * rows), layout='constrained')
    figure.suptitle(title)
    charts = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in charts[count:]:
        axes.remove()
    for axes in charts[:count]:
        axes.grid(alpha=0.3)
    return figure, charts[:count]


def _saved(figure: 'Figure', path: str | Path) -> 'Figure':
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
    return figure
