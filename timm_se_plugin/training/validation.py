"""Evaluating a checkpoint, or any model of timm, on a split of any data."""

import csv
import io
import json
import logging
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import RealLabelsImagenet
from timm.models import load_checkpoint

from ..files.writing import write_atomically
from ..measuring.complexity import complexity
from ..measuring.provenance import provenance
from .data import check_model, class_names, data_config, eval_loader, open_split
from .evaluation import Evaluation, draw_confusion, evaluate
from .process import init_process

__all__ = ['evaluate_classifier']

_logger = logging.getLogger(__name__)


def evaluate_classifier(options: Namespace) -> dict[str, Any]:
    """Evaluate, and write down what was found; returns the metrics.

    Args:
        options: of :func:`~timm_se_plugin.training.config.parse_evaluation`.

    Raises:
        ValueError: no data, a checkpoint of another model, labels that the model has no class for, or real labels for
            other images than ImageNet's.
    """
    with init_process(options) as process:
        dataset = open_split(options, options.val_split, training=False)
        check_model(options.model)
        model = timm.create_model(
            options.model, pretrained=options.pretrained, num_classes=options.num_classes, **options.model_kwargs)
        if options.checkpoint:
            try:
                load_checkpoint(model, options.checkpoint, use_ema=options.use_ema)
            except RuntimeError as error:  # torch's names every key
                raise ValueError(
                    f'--checkpoint {options.checkpoint} does not fit --model {options.model} with '
                    f'{model.num_classes} classes and --model-kwargs {options.model_kwargs}') from error
        model = model.to(process.device, getattr(torch, options.model_dtype))
        if options.channels_last:
            model = model.to(memory_format=torch.channels_last)
        config = data_config(options, model)
        real = _real_labels(options, dataset, process.world_size) if options.real_labels is not None else None
        evaluation = evaluate(
            model, eval_loader(options, dataset, config, process), process, model.num_classes,
            partial(process.autocast, options), options.channels_last, each_output=real.add_result if real else None)
        cost = complexity(model, tuple(config['input_size']))
        metrics = {
            'model': options.model, 'checkpoint': options.checkpoint or '', 'split': options.val_split,
            'images': evaluation.images, 'loss': evaluation.loss, 'top1': evaluation.top1, 'top5': evaluation.top5,
            **({f'real_top{k}': share / 100 for k, share in real.get_accuracy().items()} if real else {}),
            'input_size': 'x'.join(map(str, config['input_size'])), 'crop_pct': config['crop_pct'],
            'parameters': cost.params, 'macs': cost.macs,
            'images_per_second': round(evaluation.images_per_second, 1), **provenance(process.device)}
        if process.primary:
            names = class_names(dataset) or []
            if names and len(names) != model.num_classes:
                _logger.warning('the data has %d classes, the model %d: are they in the same order? --class-map FILE '
                                'says which is which', len(names), model.num_classes)
            _report(metrics, evaluation, names, options.output)
        return metrics


def _real_labels(options: Namespace, dataset: Any, processes: int) -> RealLabelsImagenet:
    names = dataset.filenames(basename=True) if hasattr(dataset, 'filenames') else []
    if len(names) != 50_000 or not names[0].startswith('ILSVRC2012_val_'):
        raise ValueError(f"--real-labels is for ImageNet's 50,000 validation images by name; these are {len(names)}")
    if processes > 1:
        raise ValueError('--real-labels is not allowed with several processes: it goes through the images in order')
    return RealLabelsImagenet(names, real_json=options.real_labels or None)


def _report(metrics: dict[str, Any], evaluation: Evaluation, names: list[str], output: str | None) -> None:
    accuracy = evaluation.class_accuracy.tolist()
    names = [*names, *map(str, range(len(names), len(accuracy)))]
    for name, value in metrics.items():
        _logger.info('%-18s %s', name, f'{value:.4f}' if isinstance(value, float) else value)
    if not output:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['class', 'images', 'top1', *names])
    for name, counts, share in zip(names, evaluation.confusion.tolist(), accuracy, strict=True):
        writer.writerow([name, sum(counts), f'{share:.4f}', *counts])
    folder = Path(output)
    write_atomically(folder / 'metrics.json', (json.dumps(metrics, indent=1) + '\n').encode())
    write_atomically(folder / 'classes.csv', text.getvalue().encode())
    draw_confusion(evaluation, names, folder / 'confusion.png')
    _logger.info('written: %s', folder)
