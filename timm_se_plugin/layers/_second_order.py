"""Second derivatives of functions whose first derivative is written by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ['differentiable_gradients']


def differentiable_gradients(
        formula: Callable[..., Sequence[Tensor | None]],
        inputs: Sequence[Tensor | None],
        needed: Sequence[bool],
        grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of a formula's inputs by PyTorch's own derivatives, which can be differentiated again.

    Args:
        formula: computes the outputs from the inputs, by operators that PyTorch differentiates twice.
        inputs: tensors as ``ctx.saved_tensors`` returns them, with their history.
        needed: whether the gradient of each input is asked for.
        grads: gradients of the outputs.
    """
    with torch.enable_grad():
        # Views, because the same tensor may be passed for two inputs, whose gradients differ; with the same strides,
        # which view_as changes for one sample in channels_last.
        inputs = [x if x is None else x[...] for x in inputs]
        for x, need in zip(inputs, needed, strict=True):
            if x is not None and need and not x.requires_grad:  # computed again without gradients, or frozen
                x.requires_grad_()
        outputs = [(out, grad) for out, grad in zip(formula(*inputs), grads, strict=True)
                   if out is not None and grad is not None and out.requires_grad]
        wanted = {i: x for i, x in enumerate(inputs) if x is not None and needed[i]}
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if outputs and wanted:
            found = torch.autograd.grad(
                [out for out, _ in outputs], list(wanted.values()), [grad for _, grad in outputs],
                create_graph=True, allow_unused=True)
    results: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        results[i] = gradient
    return results
