"""What a run and an evaluation show: progress, pictures, and rows in tables of results."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..files.fonts import drawable, save_figure
from ..files.tables import replace_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ['RUN', 'Progress', 'draw_confusion', 'draw_curves', 'record_result']

_logger = logging.getLogger(__name__)

# What names a run: the columns of a table of results that two runs do not have in common.
RUN = ('model', 'options', 'seed', 'epochs', 'recipe', 'data', 'global_batch', 'amp', 'torchcompile')


class Progress:
    """Progress of an epoch: a bar on a terminal, elsewhere a line in the log every `interval` batches.

    Args:
        title: text before the numbers.
        batches: number of batches in the epoch.
        start: number of the first batch of this pass.
        images: number of images in a batch of all processes together.
        interval: batches between two lines.
        shown: whether this process shows anything.
    """

    def __init__(self, title: str, batches: int, start: int, images: int, interval: int, shown: bool) -> None:
        self.title, self.batches, self.images, self.interval, self.shown = title, batches, images, interval, shown
        self.start, self.began = start, time.perf_counter()
        self.bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm
            self.bar = tqdm(
                total=batches * images, initial=start * images, desc=title, unit=' images', unit_scale=True,
                mininterval=0.5, leave=False)

    def update(self, batch: int, **numbers: float) -> None:
        """Show that batch number `batch` is done, with numbers by name."""
        text = '  '.join(f'{name} {number:.4g}' for name, number in numbers.items())
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update((batch + 1) * self.images - self.bar.n)
        elif self.shown and ((batch + 1) % self.interval == 0 or batch + 1 == self.batches):
            rate = (batch + 1 - self.start) / (time.perf_counter() - self.began)
            left = (self.batches - batch - 1) / rate
            _logger.info('%s  %d/%d  %s  %.0f images/s  %d:%02d left', self.title, batch + 1, self.batches, text,
                         rate * self.images, left // 60, left % 60)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def record_result(path: Path, row: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
    """Put the row of a finished run into a table, and its curves into ``<table>-curves.csv`` beside the table.

    A row of the same run, by the columns of :data:`RUN`, is replaced. Runs that end at the same time take turns.

    Args:
        path: the CSV file, which is created if it does not exist.
        row: results of the run by column.
        history: a row for each epoch.
    """
    name = {key: row[key] for key in RUN}
    replace_rows(path, [row], RUN)
    replace_rows(path.with_name(f'{path.stem}-curves.csv'), [{**name, **epoch} for epoch in history], RUN)


def draw_curves(history: list[dict[str, Any]], title: str, path: str | Path) -> 'Figure':
    """Draw loss and accuracy by epoch into an image file, and return the figure.

    Args:
        history: rows of ``summary.csv``.
        title: text above the two charts.
        path: PNG, SVG or PDF, by its ending.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout='constrained')
    epochs = [row['epoch'] + 1 for row in history]  # as the log counts them; summary.csv counts from 0, as timm's
    right, title_right = ((('val_map', 'val_f1'), 'mAP and mean F1') if 'val_map' in history[0] else
                          (('train_top1', 'val_top1'), 'top-1'))
    for axes, names, label in zip(figure.subplots(1, 2), (('train_loss', 'val_loss'), right), ('loss', title_right),
                                  strict=True):
        for name in names:
            axes.plot(epochs, [row[name] for row in history], marker='.', label=name.replace('_', ' '))
        axes.set(xlabel='epoch', ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    save_figure(figure, path)
    return figure


def draw_confusion(confusion: Tensor, names: Sequence[str], title: str, path: str | Path) -> 'Figure':
    """Draw a confusion matrix into an image file, and return the figure.

    The colour of a cell is the share of the true class's images; its number, with up to 30 classes, counts them.

    Args:
        confusion: numbers of images, (classes, classes): a row for each true class, a column for each first guess.
        names: names of the classes; about 30 of them label the axes.
        title: text above the matrix.
        path: PNG, SVG or PDF, by its ending.
    """
    from matplotlib.figure import Figure

    size = len(names)
    figure = Figure(figsize=(min(3 + 0.5 * size, 16), min(2 + 0.5 * size, 15)), layout='constrained')
    axes = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    figure.colorbar(axes.imshow(shares.numpy(), cmap='Blues', vmin=0, vmax=1), label='share of the true class')
    for i, j in confusion.nonzero().tolist() if size <= 30 else ():
        axes.text(j, i, str(int(confusion[i, j])), ha='center', va='center', fontsize=8,
                  color='white' if shares[i, j] > 0.5 else 'black')
    shown = range(0, size, -(-size // 30))
    labels = [drawable(names[i]) for i in shown]
    axes.set_xticks(shown, labels, rotation=90, parse_math=False)  # not a formula between two $
    axes.set_yticks(shown, labels, parse_math=False)
    axes.set(xlabel='first guess', ylabel='true class', title=title)
    save_figure(figure, path)
    return figure
