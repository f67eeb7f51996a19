"""What a run leaves to read: progress, logs, curves, and a row in a table of results."""

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.tables import replace_rows

__all__ = ['Progress', 'draw_curves', 'record_result']

_logger = logging.getLogger(__name__)


class Progress:
    """A bar on a terminal, else a line every `interval` batches; of the primary process.

    Args:
        title: before the numbers.
        batches: in the epoch.
        start: the first batch of this pass.
        images: in a batch, of all processes.
        interval: between two lines.
        shown: whether anything is shown.
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
        """Batch number `batch` is done."""
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
        """Leave the line."""
        if self.bar is not None:
            self.bar.close()


def record_result(path: Path, row: Mapping[str, Any], history: list[dict[str, Any]]) -> None:
    """Put the row of a finished run into a table, and its curves into ``<table>-curves.csv`` beside it.

    Rows of the same model, options, seed, epochs and recipe are replaced. Runs that end at the same time wait for one
    another.
    """
    keys = ('model', 'options', 'seed', 'epochs', 'recipe')
    name = {key: row[key] for key in keys}
    replace_rows(path, [row], keys)
    replace_rows(path.with_name(f'{path.stem}-curves.csv'), [{**name, **epoch} for epoch in history], keys)


def draw_curves(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Picture of loss and accuracy by epoch."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    epochs = [row['epoch'] for row in history]
    for axis, names, label in (
            (axes[0], ('train_loss', 'val_loss'), 'loss'), (axes[1], ('train_top1', 'val_top1'), 'top-1')):
        for name in names:
            numbers = [row.get(name) for row in history]
            if any(number is not None for number in numbers):
                axis.plot(epochs, numbers, marker='.', label=name.replace('_', ' '))
        axis.set_xlabel('epoch')
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
