"""Average precision and F1 score of a classifier on pictures with any number of labels."""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

__all__ = ['LabelEvaluation']


@dataclass(frozen=True)
class LabelEvaluation:
    """Metrics of a model on pictures with any number of labels.

    Args:
        loss: mean binary cross-entropy.
        average_precision: average precision of each label, 0 to 1, (labels,); NaN for a label without pictures.
        f1: the F1 score of each label at a probability of 0.5, 0 to 1, (labels,); NaN for a label without pictures.
        class_images: number of each label's pictures, (labels,).
        images: number of pictures.
        images_per_second: pictures of all processes for each second of loading and evaluation.
    """

    loss: float
    average_precision: np.ndarray
    f1: np.ndarray
    class_images: np.ndarray
    images: int
    images_per_second: float

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, seconds: float) -> 'LabelEvaluation':
        """The metrics of logits and targets of 0 and 1, both (N, labels), by scikit-learn.

        Raises:
            ValueError: no picture has a label.
        """
        from sklearn.metrics import average_precision_score

        loss = F.binary_cross_entropy_with_logits(logits.double(), targets.double()).item()
        truth = targets.bool().numpy()
        counts = truth.sum(0)
        present = counts > 0
        if not present.any():
            raise ValueError(f'none of the {len(truth)} pictures to evaluate on has a label')
        guess = (logits >= 0).numpy()
        with np.errstate(invalid='ignore'):
            f1 = np.where(present, 2 * (guess & truth).sum(0) / (guess.sum(0) + counts), math.nan)
        precision = np.full(len(counts), math.nan)
        if math.isfinite(loss):  # scikit-learn refuses NaN, which the run then reports
            for label in present.nonzero()[0]:
                precision[label] = average_precision_score(truth[:, label], logits[:, label].numpy())
        return cls(loss, precision, f1, counts, len(truth), len(truth) / seconds)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean average precision and mean F1 score over the labels that have pictures; the main metric first."""
        present = self.class_images > 0
        return {'map': float(self.average_precision[present].mean()), 'f1': float(self.f1[present].mean())}
