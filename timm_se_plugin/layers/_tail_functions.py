"""The two passes of a fused residual tail over its feature map, and their derivatives.

``moments`` reads the map for its statistics, ``scale_add_act`` writes the output; between them ordinary PyTorch
computes on (N, C) tensors. Together they keep for the backward pass the map, which BatchNorm would keep, and the
output, which ReLU would keep. A compiler or TorchScript sees the formulas; eager mode runs the operators that are
cheapest for the memory layout.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._bypass import needs_formulas

__all__ = ['add_act_', 'moments', 'scale_add_act', 'statistics_dtype']

_native = torch.ops.aten
_CALL_COST = 2**14  # cost of calling an operator, as the number of elements that are read in the same time


def statistics_dtype(y: Tensor) -> torch.dtype:
    """The type of y's statistics: float32, or float64 for a map in float64."""
    return torch.float64 if y.dtype == torch.float64 else torch.float32


def _by_sample(y: Tensor) -> bool:
    """Whether one call of BatchNorm's operator per sample is cheapest: for large maps in channels_last on a CPU."""
    return (y.device.type == 'cpu' and y.is_contiguous(memory_format=torch.channels_last)
            and y[0].numel() >= _CALL_COST)


def _sample_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean per sample and channel (N, C), and biased variance per channel (C,), without a loss of digits."""
    dtype = statistics_dtype(y)
    unused = y.new_empty(y.shape[1], dtype=dtype)  # running statistics, whose type the operator's results have
    if y.device.type == 'cpu' and y.is_contiguous():
        # E[y^2] - E[y]^2 loses digits where the mean is far larger than the deviation; BatchNorm's operator does not.
        # The test makes the host wait for the result, which costs nothing on a CPU.
        m = y.mean((2, 3), dtype=dtype)
        square = torch.linalg.vector_norm(y, dim=(2, 3), dtype=dtype).square_().mean(0).div_(y[0, 0].numel())
        mean_square = m.mean(0).square_()
        var = square.sub_(mean_square)
        if (16 * var >= mean_square).all():
            return m, var
    elif _by_sample(y):
        # One reading of a sample by BatchNorm's operator gives both its mean and its variance.
        stats = [torch.batch_norm_update_stats(sample, unused, unused, 0.0) for sample in y.split(1)]
        m, v = (torch.stack(values) for values in zip(*stats, strict=True))
        return m, v.mean(0).add_((m - m.mean(0)).square_().mean(0))
    else:
        m = y.mean((2, 3), dtype=dtype)
    return m, torch.batch_norm_update_stats(y, unused, unused, 0.0)[1]


def _moments(y: Tensor, batch: bool) -> tuple[Tensor, Tensor | None]:
    return _sample_moments(y) if batch else (y.mean((2, 3), dtype=statistics_dtype(y)), None)


class _Moments(Function):
    """Returns y beside its moments, so that backward gets all their gradients at once and adds them in place."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, batch: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        m, var = _moments(y, batch)
        ctx.size = y[0, 0].numel()
        ctx.save_for_backward(*((y, m) if batch else ()))
        return y[...], m, var  # for one sample in channels_last, view_as would give other strides

    @staticmethod
    def backward(ctx: Any, gy: Tensor, gm: Tensor, gvar: Tensor | None) -> tuple[Tensor, None]:
        formulas = needs_formulas(gy, gm, gvar)
        shift = gm / ctx.size
        slope = None
        if gvar is not None:
            y, m = ctx.saved_tensors
            slope, mean = gvar * (2 / (m.shape[0] * ctx.size)), m.mean(0)
            if y.dtype.itemsize < 4 and not formulas:
                return gy.add_(_scaled(y, slope.expand_as(shift), shift, mean)), None
            shift = shift - slope * mean
            slope = slope.to(y.dtype)[:, None, None]
        shift = shift.to(gy.dtype)[:, :, None, None]
        if formulas:
            return gy + shift if slope is None else gy + y * slope + shift, None
        if slope is not None:
            gy.addcmul_(y, slope)
        return gy.add_(shift), None


def moments(y: Tensor, batch: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean of each sample and channel, and biased variance of each channel if ``batch``.

    Shape: (N, C, H, W) -> y, which replaces the argument in what follows; (N, C); (C,) or None.
    """
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        x = y.to(statistics_dtype(y))
        if not batch:
            return y, x.mean((2, 3)), None
        v, m = torch.var_mean(x, [2, 3], correction=0)
        return y, m, v.mean(0) + (m - m.mean(0)).square().mean(0)
    if torch.is_grad_enabled():
        return _Moments.apply(y, batch)
    return y, *_moments(y, batch)


def _by_channel(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (1, N * C, H, W), so that BatchNorm's kernels work per sample and channel.

    One sample is not viewed: in channels_last a view has other strides, with which the operators of PyTorch mistake the
    layout of a second map.
    """
    return x if x.shape[0] == 1 else x.view(1, -1, *x.shape[2:])


def _affine(
        y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, inplace: bool,
) -> Tensor:
    """``weight * (y - mean) / sqrt(var + eps) + bias`` with weight and bias (N, C), mean and var (C,)."""
    N = y.shape[0]
    nothing = weight.new_empty(0)  # the operator's outputs for batch statistics, which it does not compute here
    if N == 1 or y.is_contiguous():
        if N > 1:
            mean, var = mean.repeat(N), var.repeat(N)
        rows, weight, bias = _by_channel(y), weight.flatten(), bias.flatten()
        if inplace:
            torch.native_batch_norm(rows, weight, bias, mean, var, False, 0.0, eps, out=(rows, nothing, nothing))
            return y
        out = torch.batch_norm(rows, weight, bias, mean, var, False, 0.0, eps, False)
        return out.resize_(y.shape)  # unlike a view, it may be returned from a Function and modified afterwards
    out = y if inplace else torch.empty_like(y)
    if y.dtype != weight.dtype and y.device.type == 'cpu':  # elementwise operators would copy y in float32
        for out_n, yn, weight_n, bias_n in zip(out.split(1), y.split(1), weight, bias, strict=True):
            torch.native_batch_norm(yn, weight_n, bias_n, mean, var, False, 0.0, eps, out=(out_n, nothing, nothing))
        return out
    weight = weight * (var + eps).rsqrt()
    bias = torch.addcmul(bias, weight, mean, value=-1)
    return torch.addcmul(bias[:, :, None, None], y, weight[:, :, None, None], out=out)


def _scaled(x: Tensor, weight: Tensor, bias: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
    """``weight * (x - mean) + bias`` with factors in float32, whatever the type of x.

    A factor rounded to half precision would have the same error at all positions of a channel, which does not average
    out in the sums of a gradient.
    """
    zero = weight.new_zeros(weight.shape[1])
    mean = zero if mean is None else mean
    bias = torch.zeros_like(weight) if bias is None else bias
    return _affine(x, weight.contiguous(), bias, mean, torch.ones_like(zero), 0.0, False)


def _affine_backward(
        g: Tensor, y: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float, needs_y: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of y, weight and bias."""
    N = y.shape[0]
    if N == 1 or (y.is_contiguous() and g.is_contiguous()):
        nothing = weight.new_empty(0)  # batch statistics, which are not used here; CUDA's operator does not take None
        gy, gweight, gbias = _native.native_batch_norm_backward(
            _by_channel(g), _by_channel(y), weight.flatten(), mean.repeat(N), var.repeat(N), nothing, nothing, False,
            eps, [needs_y, True, True])
        return (gy if N == 1 else gy.view_as(y)) if needs_y else None, gweight.view_as(weight), gbias.view_as(weight)
    invstd = (var + eps).rsqrt()
    if _by_sample(y):
        sums = [_native.native_batch_norm_backward(
            gn, yn, mean, mean, var, None, None, False, eps, [False, True, True])[1:]
            for gn, yn in zip(g.split(1), y.split(1), strict=True)]
        gweight, gbias = (torch.stack(values) for values in zip(*sums, strict=True))
    else:
        gbias = g.sum((2, 3), dtype=weight.dtype)
        gweight = (y - mean[:, None, None]).mul_(g).sum((2, 3), dtype=weight.dtype) * invstd
    if not needs_y:
        return None, gweight, gbias
    if g.dtype.itemsize < 4:
        return _scaled(g, weight * invstd), gweight, gbias
    return g * (weight * invstd).to(g.dtype)[:, :, None, None], gweight, gbias


def add_act_(x: Tensor, shortcut: Tensor, relu: bool) -> Tensor:
    """``relu(x + shortcut)``, or the sum alone, written into x's memory."""
    # Exporters do not know _add_relu_.
    if torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling() or not relu:
        x = x.add_(shortcut)
        return x.relu_() if relu else x
    differentiable = torch.is_grad_enabled() and (x.requires_grad or shortcut.requires_grad)
    if x.device.type == 'cpu' and x.dtype == shortcut.dtype and x.dtype.itemsize >= 4 and not differentiable:
        return _native._add_relu_(x, shortcut)  # one pass; it exists for these types on CPU, without a derivative
    return x.add_(shortcut).relu_()


def _scale_add_act(
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        shortcut: Tensor | None,
        shortcut_gate: Tensor | None,
        relu: bool,
        inplace: bool = False,
) -> Tensor:
    out = _affine(y, weight, bias, mean, var, eps, inplace and y.device.type == 'cpu')
    if shortcut is None:
        return out.relu_() if relu else out
    if shortcut_gate is not None:
        out.addcmul_(shortcut, shortcut_gate.to(out.dtype)[:, :, None, None])
        return out.relu_() if relu else out
    return add_act_(out, shortcut, relu)


class _ScaleAddAct(Function):
    """``_scale_add_act`` with gradients for y, weight, bias, shortcut and shortcut_gate."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float,
                shortcut: Tensor | None, shortcut_gate: Tensor | None, relu: bool) -> Tensor:
        out = _scale_add_act(y, weight, bias, mean, var, eps, shortcut, shortcut_gate, relu)
        ctx.eps = eps
        gated = shortcut if shortcut_gate is not None else None
        ctx.save_for_backward(y, weight, mean, var, gated, shortcut_gate, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, mean, var, shortcut, shortcut_gate, out = ctx.saved_tensors
        needs_y = ctx.needs_input_grad[0]
        gshortcut_gate = None
        if needs_formulas(g):
            g = g if out is None else g * (out > 0)
            gshortcut = g
            invstd = (var + ctx.eps).rsqrt()
            gy = g * (weight * invstd).to(g.dtype)[:, :, None, None]
            gbias = g.sum((2, 3), dtype=weight.dtype)
            gweight = (g * (y - mean[:, None, None])).sum((2, 3), dtype=weight.dtype) * invstd
            if shortcut_gate is not None:
                gshortcut = g * shortcut_gate.to(g.dtype)[:, :, None, None]
                gshortcut_gate = (g * shortcut).sum((2, 3), dtype=shortcut_gate.dtype)
        else:
            g = g if out is None else _native.threshold_backward(g, out, 0)
            gshortcut = g
            gy, gweight, gbias = _affine_backward(g, y, weight, mean, var, ctx.eps, needs_y)
            if shortcut_gate is not None:
                zero, one = torch.zeros_like(mean), torch.ones_like(mean)
                gshortcut, gshortcut_gate, _ = _affine_backward(
                    g, shortcut.to(g.dtype), shortcut_gate.to(mean.dtype), zero, one, 0.0, True)
        if not ctx.needs_input_grad[6]:
            gshortcut = None
        return gy, gweight, gbias, None, None, None, gshortcut, gshortcut_gate, None


def scale_add_act(
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        shortcut: Tensor | None,
        shortcut_gate: Tensor | None,
        relu: bool,
        inplace: bool,
) -> Tensor:
    """``relu(weight * (y - mean) / sqrt(var + eps) + bias + shortcut_gate * shortcut)``; mean and var get no gradient.

    With ``inplace``, and where no gradient is recorded, the result may be written into y's memory.

    Shape: y and shortcut (N, C, H, W); weight, bias and shortcut_gate (N, C); mean and var (C,) -> (N, C, H, W).
    """
    if torch.jit.is_scripting() or torch.compiler.is_compiling():
        weight = weight * (var + eps).rsqrt()
        bias = bias - weight * mean
        out = (y * weight[:, :, None, None] + bias[:, :, None, None]).to(y.dtype)
        if shortcut is not None:
            out = out + (shortcut if shortcut_gate is None else shortcut * shortcut_gate[:, :, None, None])
        return out.relu() if relu else out
    if torch.is_grad_enabled():
        return _ScaleAddAct.apply(y, weight, bias, mean, var, eps, shortcut, shortcut_gate, relu)
    return _scale_add_act(y, weight, bias, mean, var, eps, shortcut, shortcut_gate, relu, inplace)
