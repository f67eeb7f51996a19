"""BatchNorm and what follows it, by kernels, with derivatives.

``normalize`` reads a map for its statistics, ``scale_shift_add`` writes the output; between them attention is computed
by ordinary PyTorch on (N, C) tensors. BatchNorm's derivative needs sums over the gradient that ``scale_shift_add``
receives, and the gradient that attention sends back to ``normalize``. Therefore the backward pass of
``scale_shift_add`` computes the sums, and that of ``normalize`` the gradient of the map. autograd passes the unscaled
gradient from the first to the second as the gradient of an additional output, ``carrier``; the sums are passed in
``_Pass.sums``. The output ``y`` receives only complete gradients, which second derivatives have.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Function

from .._bypass import is_frozen, needs_formulas
from .._running_statistics import update_running_stats
from .._second_order import differentiable_gradients
from . import launch

__all__ = ['NO_RELU', 'RELU_FIRST', 'RELU_LAST', 'Normalized', 'normalize', 'scale_shift_add']

NO_RELU, RELU_LAST, RELU_FIRST = 0, 1, 2  # as in passes.py
Pooling = Literal['', 'linear', 'relu']


class _Sums(NamedTuple):
    """Results of the backward pass of ``scale_shift_add`` for that of ``normalize``."""

    factor: Tensor | None
    sums: Tensor | None
    x_sums: Tensor | None
    relu: int  # whose mask the carrier's gradient still lacks; NO_RELU for none


@dataclass(eq=False)
class _Pass:
    """The settings of one call of ``normalize``, and the sums for its backward pass."""

    bn: Any
    batch: bool  # normalise by the statistics of the batch, not by the running ones
    pooling: Pooling
    group: Any  # the process group that shares statistics, or None
    sums: _Sums | None = None


class Normalized(NamedTuple):
    """A map with BatchNorm's statistics: ``u = weight * (y - mean) * invstd + bias``.

    Shapes: carrier and y, which are the same map, (N, C, H, W); weight, bias, mean, invstd (C,); pooled (N, C) or None.
    """

    carrier: Tensor
    y: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    invstd: Tensor
    pooled: Tensor | None
    call: _Pass


def _group(bn: nn.Module) -> Any:
    """The process group in which a SyncBatchNorm shares its statistics; None for a single process."""
    if not (isinstance(bn, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized()):
        return None
    group: Any = bn.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _gather(mean: Tensor, invstd: Tensor, count: int, eps: float, group: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, biased variance, 1 / deviation and count over all processes.

    The message is that of ``torch.nn.SyncBatchNorm``, which a process with an empty batch runs. The host reads no
    value, so CUDA graphs can record the computation.
    """
    message = torch.cat([mean, invstd, mean.new_full((1,), count)])
    world = dist.get_world_size(group)
    if dist.get_backend(group) == 'gloo':
        parts = [torch.empty_like(message) for _ in range(world)]
        dist.all_gather(parts, message, group)
        gathered = torch.stack(parts)
    else:
        gathered = message.new_empty(world * message.numel())
        all_gather = getattr(dist, 'all_gather_single', None) or dist.all_gather_into_tensor  # torch 2.14 renames it
        all_gather(gathered, message, group)
        gathered = gathered.view(world, -1)
    C = len(mean)
    means, invstds, counts = gathered[:, :C], gathered[:, C:2 * C], gathered[:, 2 * C:]
    total = counts.sum()
    share = counts / total
    mean = (share * means).sum(0)
    variances = torch.where(counts > 0, invstds.square().reciprocal() - eps, 0)
    var = (share * (variances + (means - mean).square())).sum(0)
    return mean, var, (var + eps).rsqrt(), total


class _Results(NamedTuple):
    mean: Tensor
    invstd: Tensor
    pooled: Tensor | None
    pooled_sums: Tensor | None  # with pooling='relu' the share of positions that the ReLU lets through
    pooled_x_sums: Tensor | None  # mean over positions of x, with pooling='relu' of x where the ReLU lets it through
    total: Tensor | None  # number of values per channel in all processes; None for a single process


def _normalize(
        y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, invstd: Tensor | None, call: _Pass) -> _Results:
    bn, positions = call.bn, y.shape[2] * y.shape[3]
    linear = call.pooling == 'linear'
    pooled = x_mean = total = means = None
    if call.batch:
        means, squares = launch.moments(y)
        running = _running_statistics(bn) if call.group is None else (None, None, None, 0.0)
        mean, invstd, x_mean, pooled = launch.batch_statistics(
            y, means, squares, weight, bias, bn.eps, linear and call.group is None, *running)
        for buffer, moved in zip((bn.running_mean, bn.running_var), running[:2], strict=True):
            if moved is not None and not buffer.is_contiguous():
                buffer.data.copy_(moved)
        if call.group is not None:
            local = y.shape[0] * positions
            mean, var, invstd, total = _gather(mean, invstd, local, bn.eps, call.group)
            update_running_stats(
                bn.running_mean, bn.running_var, bn.num_batches_tracked, mean, var * (total / (total - 1)), bn.momentum)
    assert mean is not None  # given by the caller, or computed above
    assert invstd is not None
    if linear and pooled is None:
        if means is None:
            means, _ = launch.moments(y)
        x_mean, pooled = launch.pooled_statistics(y, means, weight, bias, mean, invstd)
    if call.pooling != 'relu':
        return _Results(mean, invstd, pooled, None, x_mean, total)
    _, sums, x_sums, _ = launch.reduce(None, y, None, None, weight, bias, mean, invstd, None, RELU_LAST)
    sums, x_sums, pooled, _ = launch.sample_sums(sums, x_sums, None, weight, bias, y.dtype, scale=1 / positions)
    return _Results(mean, invstd, pooled, sums, x_sums, total)


def _running_statistics(bn: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, float | None]:
    """Running mean and variance, the number of batches with the current one, and momentum, for the kernel to update."""
    batches = bn.num_batches_tracked
    if batches is not None:
        batches.add_(1)
    elif bn.momentum is None:
        return None, None, None, 0.0
    return bn.running_mean.contiguous(), bn.running_var.contiguous(), batches, bn.momentum


class _Normalize(Function):
    """Returns y twice beside its statistics, so that backward gets both gradients with that of the pooled output."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, invstd: Tensor | None,
                call: _Pass) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        results = _normalize(y, weight, bias, mean, invstd, call)
        ctx.call, ctx.total = call, results.total
        if not call.batch:  # constants, whose gradients backward would compute by the formula, from a copy of the map
            ctx.mark_non_differentiable(results.mean, results.invstd)
        ctx.save_for_backward(
            y, weight, bias, results.mean, results.invstd, results.pooled_sums, results.pooled_x_sums)
        return y[...], y[...], results.mean, results.invstd, results.pooled

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, grad_y: Tensor | None, grad_mean: Tensor | None,
                 grad_invstd: Tensor | None, grad_pooled: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: without use_reentrant, a checkpoint gives them only once
        y, weight, bias, mean, invstd, *_ = saved
        call: _Pass = ctx.call
        second = needs_formulas(g, grad_y, grad_mean, grad_invstd, grad_pooled)
        grads: list[Tensor | None] = [None] * 3
        if second or any(x is not None for x in (grad_y, grad_mean, grad_invstd)):
            if call.group is not None:
                raise RuntimeError(
                    'SyncBatchNorm has no second derivatives, neither here nor in PyTorch; replace it by BatchNorm2d')
            grads = differentiable_gradients(
                lambda y, weight, bias: _formula_of_normalize(y, weight, bias, mean, invstd, call), (y, weight, bias),
                ctx.needs_input_grad[:3], (grad_y, grad_mean, grad_invstd, grad_pooled if second else None))
        if not second:
            by_kernels = _gradients(ctx, saved, g, grad_pooled)
            grads = [a if b is None else b.detach() if a is None else a + b.detach()
                     for a, b in zip(by_kernels, grads, strict=True)]
        return *grads, None, None, None


def _gradients(
        ctx: Any, saved: Sequence[Any], g: Tensor | None, grad_pooled: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of y, weight and bias, by the kernels."""
    y, weight, bias, mean, invstd, pooled_sums, pooled_x_sums = saved
    call: _Pass = ctx.call
    factor = sums = x_sums = None
    relu = NO_RELU
    if g is not None:
        assert call.sums is not None  # the backward pass that sent g has set it
        (factor, sums, x_sums, relu), call.sums = call.sums, None
    elif grad_pooled is None:
        return None, None, None
    if grad_pooled is not None:
        grad_pooled = grad_pooled.contiguous()
    weight_grad = bias_grad = dy = None
    if sums is not None or grad_pooled is not None:
        weight_grad, bias_grad = launch.parameter_sums(sums, x_sums, factor, grad_pooled, pooled_sums, pooled_x_sums)
    if ctx.needs_input_grad[0]:
        totals: tuple[Tensor | None, Tensor | None] = (None, None)
        inv_count = 0.0
        if call.batch and call.group is None:
            totals, inv_count = (weight_grad, bias_grad), y.shape[1] / y.numel()
        elif call.batch:
            assert weight_grad is not None  # the statistics of a batch need the sums
            assert bias_grad is not None
            totals, inv_count = _averaged(weight_grad, bias_grad, invstd, ctx.total, call.group), 1.0
        dy = launch.apply_backward(
            g, y, weight, bias, mean, invstd, factor, grad_pooled, *totals, inv_count, relu, call.pooling == 'relu')
    needs_weight, needs_bias = ctx.needs_input_grad[1:3]
    return dy, weight_grad if needs_weight else None, bias_grad if needs_bias else None


def _averaged(weight_grad: Tensor, bias_grad: Tensor, invstd: Tensor, total: Tensor, group: Any) -> tuple[Tensor,
Tensor]:
    """Means over all processes of du * x and du. The message is that of ``torch.nn.SyncBatchNorm``."""
    message = torch.cat([bias_grad, weight_grad / invstd])
    dist.all_reduce(message, group=group)
    bias_mean, weight_mean = (message / total).chunk(2)
    return weight_mean * invstd, bias_mean


def _formula_of_normalize(
        y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, call: _Pass,
) -> tuple[Tensor | None, ...]:
    values = y.float()
    if call.batch:
        var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        invstd = (var + call.bn.eps).rsqrt()
    pooled = None
    if call.pooling:
        u = _normalized(values, weight, bias, mean, invstd)
        pooled = (u.relu() if call.pooling == 'relu' else u).mean((2, 3)).to(y.dtype)
    return y, mean, invstd, pooled


def _normalized(y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    weight, bias, mean, invstd = (x[:, None, None] for x in (weight, bias, mean, invstd))
    return weight * ((y - mean) * invstd) + bias


class _ScaleShiftAdd(Function):
    """``relu(factor * u + gate * shortcut)``, or with RELU_FIRST ``factor * relu(u) + gate * shortcut``."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor,
                factor: Tensor | None, shortcut: Tensor | None, gate: Tensor | None, relu: int, call: _Pass) -> Tensor:
        out = torch.empty_like(y)
        launch.apply(y, weight, bias, mean, invstd, factor, shortcut, gate, relu, out)
        ctx.relu, ctx.call, ctx.gates = relu, call, gate is not None
        ctx.save_for_backward(
            y, weight, bias, mean, invstd, factor, shortcut if gate is not None else None, gate,
            out if relu == RELU_LAST and shortcut is not None else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, bias, mean, invstd, factor, shortcut, gate, out = ctx.saved_tensors
        if needs_formulas(grad):
            if out is not None:
                grad = grad * (out > 0)
            elif ctx.relu == RELU_LAST:
                grad = grad * (_formula_of_tail(y, weight, bias, mean, invstd, factor, None, None, NO_RELU) > 0)
            inputs = (y, weight, bias, mean, invstd, factor, shortcut, gate)
            formula = functools.partial(_formula_of_tail, relu=ctx.relu)
            grads = differentiable_gradients(
                lambda *inputs: (formula(*inputs),), inputs, ctx.needs_input_grad[1:9], (grad,))
            if ctx.needs_input_grad[7] and not ctx.gates:
                grads[6] = grad
            return None, *grads, None, None
        layout = torch.channels_last if launch.is_channels_last(y) else torch.contiguous_format
        grad = grad.contiguous(memory_format=layout)
        g = sums = x_sums = factor_grad = gate_grad = None
        # A norm of running statistics whose weight and bias are not trained needs no sums. The mask of ``out`` is
        # applied here all the same, since the shortcut's gradient needs it too.
        if ctx.call.batch or any(ctx.needs_input_grad[2:4]) or any(x is not None for x in (factor, gate, out)):
            g, sums, x_sums, gate_grad = launch.reduce(
                grad, y, out, shortcut, weight, bias, mean, invstd, factor, ctx.relu)
        if factor is not None or gate is not None:
            assert sums is not None
            assert x_sums is not None
            sums, x_sums, factor_grad, gate_grad = launch.sample_sums(
                sums, x_sums, gate_grad, weight, bias, torch.float32 if factor is None else factor.dtype,
                torch.float32 if gate is None else gate.dtype)
        relu = ctx.relu
        if g is not None:
            relu = NO_RELU  # g has the mask already
        else:
            g = grad
        # Without detach() the call would hold the graph that holds the call, where the backward pass ends here.
        ctx.call.sums = _Sums(None if factor is None else factor.detach(), sums, x_sums, relu)
        shortcut_grad = None
        if ctx.needs_input_grad[7]:
            shortcut_grad = g if gate is None else g * gate.to(g.dtype)[:, :, None, None]
        return (g, None, None, None, None, None, factor_grad if factor is not None else None, shortcut_grad, gate_grad,
                None, None)


def _formula_of_tail(
        y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, factor: Tensor | None,
        shortcut: Tensor | None, gate: Tensor | None, relu: int,
) -> Tensor:
    """The output without RELU_LAST, whose mask the caller has applied to the gradient."""
    u = _normalized(y.float(), weight, bias, mean, invstd)
    if relu == RELU_FIRST:
        u = u.relu()
    if factor is not None:
        u = u * factor[:, :, None, None]
    if shortcut is not None and gate is not None:
        u = u + shortcut * gate[:, :, None, None]
    return u.to(y.dtype)


def _dense(y: Tensor) -> Tensor:
    """y, or a copy of y in the nearest layout if its memory has gaps or another order."""
    if y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last):
        return y
    return y.contiguous(memory_format=torch.channels_last if y.stride(1) == 1 else torch.contiguous_format)


def _expanded(x: Tensor, shape: torch.Size) -> Tensor:
    return x if x.shape == shape else x.expand(shape)  # autograd would record the call all the same


def _check_device(y: Tensor, *others: Tensor | None) -> None:
    """Raise as an operator would, where a kernel would read another GPU's memory."""
    for x in others:
        if x is not None and x.device != y.device:
            raise RuntimeError(f'a block got tensors on {y.device} and on {x.device}; move them to one device')


def normalize(y: Tensor, bn: Any, pooling: Pooling = '') -> Normalized:
    """The statistics of a BatchNorm of y, and the mean over positions of its output, which is not computed itself.

    y is read once for the statistics of a batch, which give ``'linear'`` without a further reading; once for
    ``'linear'`` by running statistics; and once more for ``'relu'``.

    Shape: y (N, C, H, W); the pooled output (N, C), in y's type.

    Args:
        y: the map.
        bn: BatchNorm2d, SyncBatchNorm, or a frozen BatchNorm; in training its running statistics are updated.
        pooling: ``'linear'`` for the mean of u, ``'relu'`` for the mean of relu(u), ``''`` for neither.

    Raises:
        ValueError: one value per channel in training, as BatchNorm2d does.
        RuntimeError: BatchNorm has another number of channels, or is on another device, as in BatchNorm2d.
    """
    y = _dense(y)
    weight, bias = bn.weight.contiguous(), bn.bias.contiguous()
    vectors = weight, bias, bn.running_mean, bn.running_var
    if wrong := {x.numel() for x in vectors} - {y.shape[1]}:  # a kernel would read and write past the end
        raise RuntimeError(f'a BatchNorm of {min(wrong)} channels got {y.shape[1]}')
    _check_device(y, *vectors)
    batch = not is_frozen(bn) and bn.training
    call = _Pass(bn, batch, pooling, _group(bn) if batch else None)
    mean = invstd = None
    if not batch:
        # A copy, since a training pass may change the running mean before the backward pass reads it.
        mean = bn.running_mean.to(torch.float32, copy=torch.is_grad_enabled()).contiguous()
        invstd = (bn.running_var.float() + bn.eps).rsqrt()
    elif y.numel() == y.shape[1] and call.group is None:
        raise ValueError(f'Expected more than 1 value per channel when training, got input size {y.shape}')
    if torch.is_grad_enabled() and (y.requires_grad or weight.requires_grad or bias.requires_grad):
        carrier, y, mean, invstd, pooled = _Normalize.apply(y, weight, bias, mean, invstd, call)
    else:
        carrier = y
        mean, invstd, pooled, *_ = _normalize(y, weight, bias, mean, invstd, call)
    return Normalized(carrier, y, weight, bias, mean, invstd, pooled, call)


def scale_shift_add(
        normalized: Normalized, factor: Tensor | None, shortcut: Tensor | None, gate: Tensor | None, relu: int,
        inplace: bool = False,
) -> Tensor:
    """``relu(factor * u + gate * shortcut)``, or ``factor * relu(u) + gate * shortcut``.

    Call this once for each result of :func:`normalize`: the two backward passes work together.

    Shape: the shortcut (N, C, H, W), factor and gate (N, C) -> (N, C, H, W), in y's type.

    Args:
        normalized: what :func:`normalize` returned.
        factor: the attention's gate times stochastic depth; None for 1.
        shortcut: what is added, or None.
        gate: multiplies the shortcut; None for 1.
        relu: NO_RELU, RELU_LAST or RELU_FIRST.
        inplace: whether the result may be written into y's memory where no gradient is recorded.

    Raises:
        RuntimeError: tensors are on several devices.
    """
    y = normalized.y
    _check_device(y, factor, shortcut, gate)
    if shortcut is not None:
        layout = torch.channels_last if launch.is_channels_last(y) else torch.contiguous_format
        shortcut = _expanded(shortcut, y.shape).contiguous(memory_format=layout)
    factor = factor if factor is None else _expanded(factor, y.shape[:2]).contiguous()
    gate = gate if gate is None else _expanded(gate, y.shape[:2]).contiguous()
    tensors = (*normalized[1:6], factor, shortcut, gate)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _ScaleShiftAdd.apply(normalized.carrier, *tensors, relu, normalized.call)
    out = y if inplace else torch.empty_like(y)
    launch.apply(*tensors, relu, out)
    return out
