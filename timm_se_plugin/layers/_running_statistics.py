"""BatchNorm's running statistics."""

import torch
from torch import Tensor

__all__ = ['update_running_stats']


@torch.no_grad()
def update_running_stats(
        running_mean: Tensor,
        running_var: Tensor,
        num_batches_tracked: Tensor | None,
        mean: Tensor,
        unbiased_var: Tensor,
        momentum: float | None,
) -> None:
    """Move the running statistics towards the batch's, as ``nn.BatchNorm2d`` does: with the unbiased variance.

    Args:
        running_mean: (C,), changed.
        running_var: (C,), changed.
        num_batches_tracked: number of batches so far, changed; None if they are not counted.
        mean: (C,) of the batch.
        unbiased_var: (C,) of the batch: the biased variance times ``count / (count - 1)``.
        momentum: weight of the batch; None for the average over all batches.
    """
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    for running, value in ((running_mean, mean), (running_var, unbiased_var)):
        # By .data, as in nn.BatchNorm2d, an earlier pass whose graph holds the tensor can still be differentiated.
        running, value = running.data, value.to(running.dtype)
        if momentum is not None:
            running.lerp_(value, momentum)
        elif num_batches_tracked is not None:
            running.add_((value - running) / num_batches_tracked)
