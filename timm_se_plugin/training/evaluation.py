"""Accuracy of a classifier: of a model on a loader, and of a checkpoint or any model of timm on a split of any data."""

import csv
import io
import json
import logging
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import RealLabelsImagenet
from timm.task import ClassificationEvaluator
from torch import Tensor, nn

from ..files.json_values import finite
from ..files.packages import require
from ..files.writing import check_folder, write_atomically
from ..measuring.complexity import complexity
from ..measuring.provenance import provenance
from ..weights.runs import data_config
from .label_evaluation import LabelEvaluation
from .loaders import Loader, eval_loader
from .network import check_image_size, evaluated_network, label_names
from .process import Process, init_process
from .records import draw_confusion
from .splits import class_names, label_by_name, open_split

__all__ = ['Evaluation', 'evaluate', 'evaluate_classifier', 'network_and_data']

_logger = logging.getLogger(__name__)
_DRAWN = 1000  # the most classes for which the confusion matrix is drawn and written into the table of classes


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a model on a data set, as :func:`evaluate` measures it.

    Args:
        loss: mean cross-entropy.
        top1: share of the images whose first guess is right, 0 to 1.
        top5: share of the images of which one of the first five guesses is right, 0 to 1.
        classes: number of classes.
        pairs: the pairs of a true class and a first guess that occur, (pairs, 2).
        counts: number of images of each pair, (pairs,).
        images_per_second: images of all processes for each second of loading and evaluation.
    """

    loss: float
    top1: float
    top5: float
    classes: int
    pairs: Tensor
    counts: Tensor
    images_per_second: float

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracies by name; the main metric first."""
        return {'top1': self.top1, 'top5': self.top5}

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.counts.sum())

    @property
    def class_images(self) -> Tensor:
        """Number of each class's images, (classes,)."""
        return self.counts.new_zeros(self.classes).index_add(0, self.pairs[:, 0], self.counts)

    @property
    def class_accuracy(self) -> Tensor:
        """Share of each class's images whose first guess is right, (classes,); NaN for a class without images."""
        right = self.counts * (self.pairs[:, 0] == self.pairs[:, 1])
        return self.counts.new_zeros(self.classes).index_add(0, self.pairs[:, 0], right) / self.class_images

    @property
    def confusion(self) -> Tensor:
        """Number of images, (classes, classes): a row for each true class, a column for each first guess.

        With 21,841 classes this matrix takes 3.8 GB, while `pairs` has at most one row for each image.
        """
        dense = self.counts.new_zeros(self.classes, self.classes)
        return dense.index_put((self.pairs[:, 0], self.pairs[:, 1]), self.counts)


@torch.no_grad()
def evaluate(
        model: nn.Module, loader: Loader, classes: int, each_output: Callable[[Tensor], None] | None = None,
) -> Evaluation | LabelEvaluation:
    """Evaluate a model; each process evaluates its own images, and every image counts once.

    Args:
        model: maps images (N, C, H, W) to logits (N, classes).
        loader: result of :func:`~timm_se_plugin.training.loaders.eval_loader`.
        classes: number of the model's classes.
        each_output: called with the logits of each batch.

    Returns:
        An :class:`Evaluation`, or with ``--task multilabel`` a
        :class:`~timm_se_plugin.training.label_evaluation.LabelEvaluation`.

    Raises:
        ValueError: a label for which the model has no class, or no readable image.
    """
    outputs = _outputs(model, loader, each_output)
    if loader.options.task == 'multilabel':
        return _evaluate_labels(outputs, loader.process, classes)
    return _evaluate_classes(outputs, loader.process, classes)


def _outputs(
        model: nn.Module, loader: Loader, each_output: Callable[[Tensor], None] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits and the targets of each batch's readable images."""
    mode = model.training
    model.eval()
    for x, y in loader():
        with loader.process.autocast(loader.options):
            output = model(x)
        if each_output:
            each_output(output)
        known = (y if y.ndim == 1 else y[:, 0]) >= 0  # the target of an unreadable image is -1
        yield output[known], y[known]
    model.train(mode)


def _evaluate_labels(outputs: Iterable[tuple[Tensor, Tensor]], process: Process, classes: int) -> LabelEvaluation:
    start = time.perf_counter()
    logits, targets = [torch.zeros(0, classes)], [torch.zeros(0, classes)]
    for output, y in outputs:
        if y.shape[1] != classes:
            raise ValueError(f'the data has {y.shape[1]} labels and the model has {classes} classes')
        logits.append(output.float().cpu())
        targets.append(y.float().cpu())
    found, truth = (process.gathered(torch.cat(parts)) for parts in (logits, targets))
    if not len(found):
        raise ValueError('there is no readable image to evaluate')
    return LabelEvaluation.of(found, truth, time.perf_counter() - start)


def _evaluate_classes(outputs: Iterable[tuple[Tensor, Tensor]], process: Process, classes: int) -> Evaluation:
    evaluator = ClassificationEvaluator(device=process.device)
    codes = [torch.zeros(0, dtype=torch.int64, device=process.device)]  # true class * classes + first guess
    start = time.perf_counter()
    for output, y in outputs:
        if y.numel() and int(y.max()) >= classes:
            raise ValueError(f'the data has the label {int(y.max())}, but the model has only {classes} classes; '
                             '--num-classes sets their number')
        evaluator.update(output, y)
        codes.append(y * classes + output.argmax(1))
    metrics = evaluator.compute(distributed=process.distributed)
    found, counts = process.gathered(torch.cat(codes)).unique(return_counts=True)
    if not len(found):
        raise ValueError('there is no readable image to evaluate')
    return Evaluation(
        metrics['loss'], metrics['top1'] / 100, metrics['top5'] / 100, classes,
        torch.stack([found // classes, found % classes], 1), counts,
        int(counts.sum()) / (time.perf_counter() - start))


def network_and_data(options: Namespace, process: Process) -> tuple[Any, Any, Loader]:
    """The network that the options of an evaluation name, and the data that it is evaluated on.

    Returns:
        The network, the split's data set with its classes numbered as the network knows them, and its loader, which
        has the data configuration.

    Raises:
        ValueError: no data, an unknown model, a checkpoint of another model, classes that the network does not have,
            or images of another size than it takes.
    """
    dataset = open_split(options, options.val_split, training=False)
    model = evaluated_network(options, process)
    options = Namespace(**{**vars(options), 'num_classes': model.num_classes})
    label_by_name(dataset, label_names(options, model, class_names(dataset)), options.val_split)
    config = data_config(vars(options), model)
    check_image_size(model, config['input_size'])
    return model, dataset, eval_loader(options, dataset, config, process)


def evaluate_classifier(options: Namespace) -> dict[str, Any]:
    """Evaluate the network that the options name, log the metrics, and write them into ``--output`` if that is given.

    Args:
        options: result of :func:`~timm_se_plugin.training.config.parse_evaluation`.

    Returns:
        The metrics: losses and accuracies (0 to 1), input size, parameters, MACs, images per second, and versions.

    Raises:
        ValueError: as :func:`network_and_data`, or real labels for other images than ImageNet's.
        ModuleNotFoundError: a package that the metrics need is not installed.
    """
    require('train', *(['matplotlib'] if options.output else []),
            *(['sklearn'] if options.task == 'multilabel' else []))
    if options.output:
        check_folder(options.output)
    with init_process(options) as process:
        model, dataset, loader = network_and_data(options, process)
        config = loader.config
        real = _real_labels(options, dataset, process.world_size) if options.real_labels is not None else None
        evaluation = evaluate(model, loader, model.num_classes, real.add_result if real else None)
        cost = complexity(model, tuple(config['input_size']))
        metrics = {
            'model': options.model, 'checkpoint': options.checkpoint or '', 'split': options.val_split,
            'images': evaluation.images, 'loss': evaluation.loss, **evaluation.metrics,
            **({f'real_top{k}': share / 100 for k, share in real.get_accuracy().items()} if real else {}),
            'input_size': 'x'.join(map(str, config['input_size'])), 'crop_pct': config['crop_pct'],
            'parameters': cost.params, 'macs': cost.macs,
            'images_per_second': round(evaluation.images_per_second, 1), **provenance(process.device)}
        if process.primary:
            names = class_names(dataset) or []
            if names and len(names) != model.num_classes:
                _logger.warning('the data has %d classes and the model has %d; if their order differs, --class-map '
                                'FILE gives each class of the data its index in the model',
                                len(names), model.num_classes)
            _report(metrics, evaluation, names, options.output)
        return metrics


def _real_labels(options: Namespace, dataset: Any, processes: int) -> RealLabelsImagenet:
    names = dataset.filenames(basename=True) if hasattr(dataset, 'filenames') else []
    if len(names) != 50_000 or not names[0].startswith('ILSVRC2012_val_'):
        raise ValueError("--real-labels needs ImageNet's 50,000 validation images under their original file names; "
                         f'this split has {len(names)} images')
    if processes > 1:
        raise ValueError(f'--real-labels needs one process, which sees the images in their order; this run has '
                         f'{processes}')
    return RealLabelsImagenet(names, real_json=options.real_labels or None)


def _report(
        metrics: dict[str, Any], evaluation: Evaluation | LabelEvaluation, names: list[str], output: str | None,
) -> None:
    for name, value in metrics.items():
        _logger.info('%-18s %s', name, f'{value:.4f}' if isinstance(value, float) else value)
    if not output:
        return
    folder = Path(output)
    write_atomically(folder / 'metrics.json', (json.dumps(finite(metrics), indent=1) + '\n').encode())
    if isinstance(evaluation, LabelEvaluation):
        scores = ([f'{score:.4f}' for score in each] for each in (evaluation.average_precision, evaluation.f1))
        _write(folder / 'classes.csv', ('class', 'images', 'average_precision', 'f1'), zip(
            names, evaluation.class_images.tolist(), *scores, strict=True))
    else:
        _report_classes(folder, evaluation, names)
    _logger.info('written: %s', folder)


def _report_classes(folder: Path, evaluation: Evaluation, names: list[str]) -> None:
    # A class map may name more classes than the model has, or fewer.
    names = [*names, *map(str, range(len(names), evaluation.classes))][:evaluation.classes]
    rows = list(zip(names, evaluation.class_images.tolist(), (f'{share:.4f}' for share in evaluation.class_accuracy),
                    strict=True))
    if evaluation.classes <= _DRAWN:
        confusion = evaluation.confusion
        _write(folder / 'classes.csv', ('class', 'images', 'top1', *names), (
            (*row, *counts) for row, counts in zip(rows, confusion.tolist(), strict=True)))
        draw_confusion(confusion, names, f'top-1 {evaluation.top1:.2%} of {evaluation.images:,} images',
                       folder / 'confusion.png')
    else:  # the whole matrix is too large for a picture or a table
        _write(folder / 'classes.csv', ('class', 'images', 'top1'), rows)
        _write(folder / 'confusion.csv', ('class', 'guess', 'images'), (
            (names[true], names[guess], count) for (true, guess), count in zip(
                evaluation.pairs.tolist(), evaluation.counts.tolist(), strict=True)))


def _write(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([columns, *rows])
    write_atomically(path, text.getvalue().encode(errors='backslashreplace'))
