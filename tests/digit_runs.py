"""Training runs of a tiny network on scikit-learn's handwritten digits."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

# 96 images in 6 batches: enough for every kind of interruption, and a fraction of a second for each epoch.
TINY = (
    '--model', 'se_test_resnet_plugin', '--img-size', '32', '--crop-pct', '1.0', '--batch-size', '16', '--workers', '0',
    '--epochs', '2', '--lr', '0.05', '--deterministic', '--device', 'cpu', '--log-interval', '1')


def save_digits(folder: Path, train: int = 96, val: int = 50) -> Path:
    """Write real digits as PNG files: ``train/<digit>/*.png`` and ``val/<digit>/*.png``."""
    from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    for i, (pixels, label) in enumerate(zip(images[:train + val], labels[:train + val], strict=True)):
        path = folder / ('train' if i < train else 'val') / str(label) / f'{i:04d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.reshape(8, 8) * 15.9).astype('uint8')).convert('RGB').resize((32, 32)).save(path)
    return folder


def save_labelled_digits(folder: Path, train: int = 96, val: int = 50) -> Path:
    """Write digits as :func:`save_digits` does, and ``train.csv`` and ``val.csv`` with what is true of each."""
    import csv
    save_digits(folder, train, val)
    for split in ('train', 'val'):
        with open(folder / f'{split}.csv', 'w', encoding='utf-8', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['picture', 'even', 'large', 'has a hole'])
            for path in sorted((folder / split).glob('*/*.png')):
                digit = int(path.parent.name)
                writer.writerow([path.relative_to(folder).as_posix(), int(digit % 2 == 0), int(digit >= 5),
                                 int(digit in (0, 6, 8, 9))])
    return folder


def train(arguments: Sequence[str], log: str) -> None:
    """Train; what the run says goes to the file `log`."""
    import logging
    import sys

    sys.stderr = open(log, 'a', encoding='utf-8', buffering=1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)

    import timm_se_plugin.training
    options = timm_se_plugin.training.parse_options(arguments)
    timm_se_plugin.training.train_classifier(options)


def train_in_pieces(*arguments: str) -> None:
    """Train, in this process; the run is ended right after each of its first two saves and continued."""
    import pytest

    from timm_se_plugin.training import parse_options, train_classifier
    from timm_se_plugin.training.run import Run

    stops = []

    def save_and_stop(run: Run, best: bool = False) -> None:
        save(run, best)
        stops.append((run.epoch, run.batch))
        raise KeyboardInterrupt
    save, options = Run.save, parse_options([*TINY, '--recovery-interval', '2', *arguments, '--resume', 'auto'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, 'save', save_and_stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train_classifier(options)
    assert stops[0] < stops[1]  # the second piece went on where the first ended
    train_classifier(options)


def job(folder: Path, *arguments: str) -> tuple[tuple[str, ...], str]:
    """Arguments of :func:`train` for a run in `folder`, which logs to ``<folder>.log``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return (*TINY, '--output', str(folder.parent), '--experiment', folder.name, *arguments), f'{folder}.log'


def said(folder: Path) -> str:
    """What a run said."""
    log = Path(f'{folder}.log')
    return log.read_text(encoding='utf-8') if log.exists() else ''


def weights(folder: Path, ema: bool = False) -> dict[str, torch.Tensor]:
    """Weights in the last checkpoint of a run."""
    from timm_se_plugin.training.checkpoint import read_checkpoint
    return read_checkpoint(folder / 'last.pth.tar')['state_dict_ema' if ema else 'state_dict']


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are the same, bit by bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def summary(folder: Path) -> list[dict[str, str]]:
    """Rows of ``summary.csv`` without the seconds."""
    from timm_se_plugin.files.tables import read_table
    rows = read_table(folder / 'summary.csv')
    return [{key: value for key, value in row.items() if key != 'seconds'} for row in rows]
