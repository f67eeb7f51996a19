"""The loss of a run, made by timm; on request, classes with few pictures weigh more."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.loss import compute_class_weights, create_classification_loss
from torch import Tensor, nn
from torch.nn import functional as F

from .labels import LabelReader

__all__ = ['WeightedCrossEntropy', 'make_loss']

_logger = logging.getLogger(__name__)
_SHOWN = 20  # classes whose counts are logged


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy in which each class has a weight; timm has weights only for binary cross-entropy.

    The loss of a batch is divided by the number of images, where ``torch.nn.CrossEntropyLoss`` divides by the sum of
    their weights. Accumulated batches, and those of several processes, therefore give the gradient of the whole batch.

    Args:
        weight: weight of each class, (classes,).
        smoothing: label smoothing, 0 to 1.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer('weight', weight)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The loss, (), of logits (N, classes) and of classes (N,) or mixed targets (N, classes)."""
        return F.cross_entropy(x, target, self.weight, reduction='none', label_smoothing=self.smoothing).mean()


def make_loss(options: Namespace, data: Any, names: Sequence[str], mixes: bool) -> nn.Module:
    """The loss that the options name.

    Args:
        options: the run's options.
        data: training data, whose images are counted for ``--class-weight``.
        names: names of the classes.
        mixes: whether Mixup or CutMix makes the targets, with their own label smoothing.

    Raises:
        ValueError: weights that the loss does not take, or data whose targets are not known before it is read.
    """
    is_multilabel = options.task == 'multilabel'
    is_binary = options.bce_loss or is_multilabel
    smoothing = 0.0 if mixes else options.smoothing
    weights: dict[str, Tensor] = {}
    if options.class_weight:
        kind, weight = _weights(options.class_weight, data, names, is_binary)
        if not is_binary and kind == 'pos_weight':
            raise ValueError('--class-weight neg_pos is for binary cross-entropy; give --bce-loss too, or '
                             '--class-weight inv_freq')
        if not is_binary:
            return WeightedCrossEntropy(weight, smoothing)
        weights = {kind: weight}
    return create_classification_loss(
        'bce' if is_binary else 'ce', is_multilabel, smoothing=smoothing, soft_targets=mixes,
        bce_target_thresh=options.bce_target_thresh if is_binary else None, **weights)


def _weights(method: str, data: Any, names: Sequence[str], is_binary: bool) -> tuple[str, Tensor]:
    """timm's name of the weights, and the weights, (classes,).

    timm's weights have the mean 1 over the classes, which suits binary cross-entropy, a mean over all classes.
    Cross-entropy has one term for each image: where one class has nearly all images, and therefore a small weight, the
    loss would nearly vanish. For cross-entropy, the mean over the images is therefore 1.
    """
    counts = np.bincount(_targets(data), minlength=len(names))
    kind, weight = compute_class_weights(counts, len(data), method)
    if not is_binary:
        weight = weight * (counts.sum() / (weight * torch.from_numpy(counts)).sum()).float()
    order = np.argsort(counts, kind='stable')
    shown = [f'{names[i]} {counts[i]:,} ({weight[i]:.3g})' for i in order]
    if len(shown) > _SHOWN:
        shown[_SHOWN // 2:-_SHOWN // 2] = ['…']
    _logger.info('training images of each class, and its weight in the loss: %s', ', '.join(shown))
    return kind, weight


def _targets(data: Any) -> np.ndarray:
    """The class of each image, (images,), or all labels of all images, without reading the images."""
    reader: Any = getattr(data, 'reader', None)
    if hasattr(reader, 'targets'):  # a tar file
        return np.asarray(reader.targets)
    if isinstance(reader, LabelReader):
        return np.array([label for _, labels in reader.samples for label in labels], int)
    if hasattr(reader, 'samples'):  # a folder
        return np.array([target for _, target in reader.samples])
    if hasattr(data, 'targets'):  # a data set of torchvision
        return np.asarray(data.targets)
    if hasattr(reader, 'label_key') and hasattr(reader, 'dataset') and not reader.remap_class:  # a data set of the Hub
        return np.asarray(reader.dataset[reader.label_key])
    raise ValueError('--class-weight needs the number of images of each class, which is not known for this data before '
                     'it is read; leave out --class-weight')
