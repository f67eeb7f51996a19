"""Accuracy of a classifier: top-1, top-5, by class, and what is taken for what."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.task import ClassificationEvaluator
from torch import Tensor, nn

from .data import Loader
from .process import Process

__all__ = ['Evaluation', 'draw_confusion', 'evaluate']


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Args:
        loss: mean cross-entropy.
        top1: share of images whose first guess is right, 0 to 1.
        top5: share of images whose first five guesses hold the right one.
        confusion: counts, (classes, classes): a row for each true class, a column for each guess.
        images_per_second: with loading, of all processes.
    """

    loss: float
    top1: float
    top5: float
    confusion: Tensor
    images_per_second: float

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def class_accuracy(self) -> Tensor:
        """Share of the images of each class whose first guess is right, (classes,); NaN where there are none."""
        return self.confusion.diag() / self.confusion.sum(1)


@torch.no_grad()
def evaluate(
        model: nn.Module, loader: Loader, process: Process, classes: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        channels_last: bool = False, each_output: Callable[[Tensor], None] | None = None,
) -> Evaluation:
    """Evaluate a model; each process sees its own images, and every image counts once.

    Args:
        model: gives (N, classes).
        loader: of :func:`eval_loader`.
        process: this process.
        classes: of the model.
        autocast: context of a forward pass.
        channels_last: memory format of the images.
        each_output: called with the logits of each batch.

    Raises:
        ValueError: a label outside the model's classes, or no image.
    """
    mode = model.training
    model.eval()
    evaluator = ClassificationEvaluator(device=process.device)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=process.device)
    start = time.perf_counter()
    for x, y in loader():
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with autocast():
            output = model(x)
        if each_output:
            each_output(output)
        known = y >= 0  # an unreadable image has no target
        output, y = output[known], y[known]
        if y.numel() and int(y.max()) >= classes:
            raise ValueError(f'the data has a label {int(y.max())}, the model {classes} classes; see --num-classes')
        evaluator.update(output, y)
        confusion += torch.bincount(y * classes + output.argmax(1), minlength=classes ** 2).view(classes, classes)
    model.train(mode)
    metrics = evaluator.compute(distributed=process.distributed)
    confusion = process.total(confusion).cpu()
    if not int(confusion.sum()):
        raise ValueError('there is no readable image to evaluate')
    return Evaluation(
        metrics['loss'], metrics['top1'] / 100, metrics['top5'] / 100, confusion,
        int(confusion.sum()) / (time.perf_counter() - start))


def draw_confusion(evaluation: Evaluation, names: list[str] | None, path: str | Path) -> None:
    """Picture of the confusion matrix: shares of each true class."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    counts = evaluation.confusion
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    size = len(counts)
    figure, axis = plt.subplots(figsize=(min(2.5 + 0.5 * size, 16), min(2 + 0.5 * size, 15)))
    picture = axis.imshow(shares.numpy(), cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(picture, label='share of the true class')
    if size <= 30:
        labels = names or [str(i) for i in range(size)]
        axis.set_xticks(range(size), labels, rotation=90)
        axis.set_yticks(range(size), labels)
        for i in range(size):
            for j in range(size):
                if counts[i, j]:
                    axis.text(j, i, str(int(counts[i, j])), ha='center', va='center', fontsize=8,
                              color='white' if shares[i, j] > 0.5 else 'black')
    axis.set_xlabel('first guess')
    axis.set_ylabel('true class')
    axis.set_title(f'top-1 {evaluation.top1:.2%} of {evaluation.images:,} images')
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
