"""BatchNorm, ReLU and the mean over the map, for which autograd keeps only BatchNorm's input."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._bypass import needs_formulas
from ._running_statistics import update_running_stats
from ._second_order import differentiable_gradients
from ._tail_functions import statistics_dtype
from .norm_act import batch_norm_
from .squeeze_excite import spatial_mean

__all__ = ['batch_moments', 'batch_norm_relu', 'differentiable_branch', 'recompute']


def batch_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, in float32 at least. Shape: (N, C, H, W) -> (C,), (C,)."""
    dtype = statistics_dtype(y)
    if y.is_cpu and y.is_contiguous():  # here batch_norm_update_stats takes 2.5 times as long
        mean = y.mean((2, 3), dtype=dtype).mean(0)
        deviation = torch.linalg.vector_norm(y - mean.view(-1, 1, 1), dim=(2, 3))
        return mean, deviation.square_().mean(0).div_(y.shape[2] * y.shape[3])
    running = y.new_ones(2, y.shape[1], dtype=dtype)  # unchanged; the operator's results have their type
    return torch.batch_norm_update_stats(y, running[0], running[1], 0.0)


def recompute(recipe: list[Tensor], eps: float) -> Tensor:
    """U, computed again from the recipe that :func:`batch_norm_relu` returned."""
    return _before_relu(recipe, eps).relu_()


def differentiable_branch(recipe: list[Tensor], training: bool, eps: float) -> Tensor:
    """U, computed again by operators that PyTorch differentiates, the batch statistics included."""
    y, weight, bias, mean, var = recipe
    running_mean, running_var = (None, None) if training else (mean, var)
    return F.batch_norm(y, running_mean, running_var, weight, bias, training, 0.0, eps).relu()


def _before_relu(recipe: list[Tensor], eps: float) -> Tensor:
    y, weight, bias, mean, var = recipe
    return F.batch_norm(y, mean, var, weight, bias, False, 0.0, eps)


class _BatchNormReLU(torch.autograd.Function):
    """U = relu(a * y + b) and mean_HW(U). Saves y and (C,) vectors; the backward pass computes a * y + b again."""

    @staticmethod
    def forward(ctx, y, weight, bias, mean, var, training, eps, private):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, weight, bias, mean, var)
        ctx.training, ctx.eps, ctx.private = training, eps, private
        u = recompute([y, weight, bias, mean, var], eps)
        return u, spatial_mean(u)

    @staticmethod
    def backward(ctx, grad_u, grad_mean):
        y, weight, bias, mean, var = recipe = ctx.saved_tensors
        if needs_formulas(grad_u, grad_mean):
            def formula(y, weight, bias):
                u = differentiable_branch([y, weight, bias, mean, var], ctx.training, ctx.eps)
                return u, spatial_mean(u)

            grads = differentiable_gradients(
                formula, (y, weight, bias), ctx.needs_input_grad[:3], (grad_u, grad_mean))
            return *grads, None, None, None, None, None
        if grad_u is None:
            grad_u = torch.zeros_like(y)
        elif not ctx.private:
            grad_u = grad_u.clone()
        if grad_mean is not None:
            grad_u.add_(grad_mean / (y.shape[2] * y.shape[3]))
        before = _before_relu(recipe, ctx.eps)
        torch.ops.aten.threshold_backward.grad_input(grad_u, before, 0, grad_input=grad_u)
        grads = torch.ops.aten.native_batch_norm_backward(
            grad_u, y, weight, mean, var, mean, (var + ctx.eps).rsqrt(), ctx.training, ctx.eps,
            list(ctx.needs_input_grad[:3]))
        return *grads, None, None, None, None, None


def batch_norm_relu(
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        num_batches_tracked: Tensor | None,
        training: bool,
        momentum: float | None,
        eps: float,
        private: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """``U = relu(batch_norm(y))``, its mean over the map, and the recipe to compute U again.

    Module by module, autograd keeps y and U until the backward pass; here it keeps only y. The running statistics are
    updated as in ``nn.BatchNorm2d``; with ``training=False`` they normalise. ``private`` says that no other code holds
    y or the gradient of U. Then U is written into y's memory where no gradient is recorded, and in the backward pass
    the gradient of y into that of U, since allocating a large tensor costs as much as a pass over it.

    Shape: (N, C, H, W) -> (N, C, H, W), (N, C, 1, 1), the recipe [y, weight, bias, mean, var] (empty without
    gradients).

    Raises:
        ValueError: training on one value per channel, as in ``nn.BatchNorm2d``.
    """
    if torch.jit.is_scripting() or (training and not torch.is_grad_enabled()):
        factor = 0.0
        if training:
            if num_batches_tracked is not None:
                num_batches_tracked.add_(1)
            if momentum is not None:
                factor = momentum
            elif num_batches_tracked is not None:
                factor = 1.0 / float(num_batches_tracked)
        recipe: list[Tensor] = []
        u = F.relu(F.batch_norm(y, running_mean, running_var, weight, bias, training, factor, eps), inplace=True)
        return u, spatial_mean(u), recipe
    return _batch_norm_relu(
        y, weight, bias, running_mean, running_var, num_batches_tracked, training, momentum, eps, private)


@torch.jit.unused
def _batch_norm_relu(
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        num_batches_tracked: Tensor | None,
        training: bool,
        momentum: float | None,
        eps: float,
        private: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    if not torch.is_grad_enabled():
        if private and y.is_cpu:
            u = batch_norm_(y, weight, bias, running_mean, running_var, eps)
        else:
            u = F.batch_norm(y, running_mean, running_var, weight, bias, False, 0.0, eps)
        u = u.relu_()
        return u, spatial_mean(u), []
    dtype = statistics_dtype(y)
    if training:
        count = y.numel() // y.shape[1]
        if count < 2:
            raise ValueError(f'BatchNorm needs more than one value per channel in training, got {tuple(y.shape)}')
        with torch.no_grad():
            mean, var = batch_moments(y)
        update_running_stats(
            running_mean, running_var, num_batches_tracked, mean, var * (count / (count - 1)), momentum)
    else:
        # Copies, since a training pass may change the running statistics before the backward pass reads them.
        mean, var = running_mean.to(dtype, copy=True), running_var.to(dtype, copy=True)
    recipe = [y, weight.to(dtype), bias.to(dtype), mean, var]
    return *_BatchNormReLU.apply(*recipe, training, eps, private), recipe
