"""The tail of a residual block, BatchNorm to activation, in as few passes as its algebra allows."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._bypass import (
    can_overwrite,
    has_hooks,
    in_training,
    is_eager_inference,
    is_frozen,
    is_plain_conv,
    why_not_batch_norm,
    why_not_eager,
)
from ._running_statistics import update_running_stats
from ._tail_functions import add_act_, moments, scale_add_act, statistics_dtype
from .kernels import has_kernels
from .pointwise import product
from .squeeze_excite import why_not_squeeze_excite

__all__ = [
    'add_shortcut', 'can_fuse', 'can_gate_weights', 'gated_conv', 'is_small', 'is_worthwhile', 'recalibrate',
    'residual_tail', 'why_not_fused']


_EXPORTING = '_is_exporting_flag' if hasattr(torch.compiler, '_is_exporting_flag') else '_is_compiling_flag'


def _is_exporting() -> bool:
    """Whether ``torch.export`` traces the network; False under ``torch.compile``.

    The flags behind ``torch.compiler.is_exporting`` are read: torch 2.6 has no such function, and before torch 2.13
    dynamo assumes that the function returns True (pytorch pull request 176499), so that no compiled network would be
    fused. An export of torch 2.6 with ``strict=True`` sets neither flag; its program has the fused formulas. No other
    flag may be read here: one that differs outside the compiler makes it compile the network again at every call.
    """
    return getattr(torch.compiler, _EXPORTING)


def _is_pointwise(conv: Any) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def why_not_fused(x: Tensor, bn: Any, se: Any = None, drop_path: Any = None) -> str:
    """Why the tail has to run module by module; an empty string if it can be fused."""
    if torch.jit.is_tracing() or _is_exporting():
        return 'the network is being traced or exported'
    obstacle = '' if is_frozen(bn) else why_not_batch_norm(bn, synchronised=has_kernels(x))
    if obstacle:
        return obstacle
    obstacle = '' if se is None else why_not_squeeze_excite(se)
    if obstacle:
        return obstacle
    if not (drop_path is None or type(drop_path) is nn.Identity or hasattr(drop_path, 'scale_by_keep')):
        return f'a {type(drop_path).__name__} is not known to be stochastic depth'
    if has_hooks(bn, se, drop_path):
        return 'a hook is registered on a module that the fused tail bypasses'
    if isinstance(x, torch.fx.Proxy) or torch.compiler.is_compiling():
        return ''  # what follows concerns only eager mode
    return why_not_eager(x)


# Number of elements from which the fused tail takes less time than the modules, on a CPU in eager mode. The keys say
# whether gradients are recorded, the values have 16 bits, and the memory format is channels_last. The measurements are
# in results/tail-cpu.csv. On smaller maps the additional calls cost more than the saved reads.
_WORTHWHILE = {
    (True, False, False): 2**18, (True, False, True): 2**19, (True, True, False): 2**20, (True, True, True): 2**19,
    (False, False, False): 2**20, (False, False, True): 2**18, (False, True, False): 2**20, (False, True, True): 2**20,
}
_MOST_SAMPLES = 16  # that count, with 16 bits in channels_last: a large batch of small maps gains nothing
# The same number for the output of gated_conv, and for a block's input, below which no shorter way saves time; both at
# inference on a CPU in eager mode. results/speed-cpu.csv has one image of SE-ResNet-50 and SE-ResNet-18.
_WORTH_GATING = 2**18
_WORTH_CHECKING = 2**18


def is_worthwhile(x: Tensor) -> bool:
    """Whether fusing the tail saves time for this map: always, except for small maps on a CPU in eager mode.

    True where :func:`why_not_fused` refuses the map, such as in ``torch.vmap``, whose maps have no memory format.
    """
    if torch.compiler.is_compiling() or why_not_eager(x) or not x.is_cpu:
        return True
    is_half = x.element_size() == 2
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    samples = min(x.shape[0], _MOST_SAMPLES) if is_half and is_last else x.shape[0]
    return samples * x.shape[1:].numel() >= _WORTHWHILE[torch.is_grad_enabled(), is_half, is_last]


def is_small(x: Tensor) -> bool:
    """Whether a block with this input is quickest module by module: with few values, at inference, on a CPU.

    There the calls that ask whether a shorter way is possible take longer than a shorter way saves.
    """
    return not (isinstance(x, torch.fx.Proxy) or torch.is_grad_enabled() or torch.compiler.is_compiling()
                or torch.jit.is_tracing() or not x.is_cpu or x.numel() >= _WORTH_CHECKING)


def can_fuse(
        x: Tensor,
        bn: nn.Module,
        se: nn.Module | None = None,
        drop_path: nn.Module | None = None,
        fused: bool | Literal['auto'] = 'auto',
) -> bool:
    """Whether :func:`residual_tail` gives the result of these modules called one after the other.

    Ask at every call, since modules may be replaced (``convert_sync_batchnorm``) or get hooks at any time. Without
    attention, stochastic depth and a shortcut's gate nothing is multiplied, and only the kernels of a GPU
    (:func:`~timm_se_plugin.layers.kernels.has_kernels`) take less time than the modules.

    Args:
        x: BatchNorm's input.
        bn: the last BatchNorm of the block.
        se: the attention of the block, a :class:`SqueezeExcite` that squeezes by the average, or None.
        drop_path: stochastic depth with timm's attributes, or None.
        fused: ``'auto'`` asks in addition whether fusing saves time; False returns False; True raises if it is
            impossible.

    Raises:
        ValueError: ``fused=True`` where the tail cannot be fused, with the reason.
    """
    if not fused or (fused == 'auto' and not is_worthwhile(x)):
        return False
    obstacle = why_not_fused(x, bn, se, drop_path)
    if obstacle and fused is True:
        raise ValueError(f"attn_fused=True, but {obstacle}; choose 'auto' or False")
    return not obstacle


def _is_cheaper_squeeze(conv_input: Tensor, y: Tensor) -> bool:
    """Whether reading the convolution's input and its weights once more takes less than reading its output."""
    N, channels, height, width = y.shape
    positions = N * height * width
    return conv_input.shape[1] * (positions + channels) < channels * positions


def _mean_behind(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Mean over positions of a 1x1 convolution's output, computed as the convolution of its input's mean; (N, C)."""
    dtype = statistics_dtype(x)
    return F.linear(x.mean((2, 3), dtype=dtype).to(weight.dtype), weight.flatten(1), bias).to(dtype)


def normalize_squeeze(
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        num_batches_tracked: Tensor | None,
        momentum: float | None,
        eps: float,
        training: bool,
        squeeze: bool,
        conv_input: Tensor | None,
        conv_weight: Tensor | None,
        conv_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """BatchNorm as a scale and an offset per channel, and the average of its output over H and W.

    Returns y, z, scale, offset, mean, var. BatchNorm is ``scale * (y - mean) / sqrt(var + eps) + offset``; in
    training the root is 1, and scale and offset contain the statistics and their derivatives. z is the average, of
    shape (N, C, 1, 1), and is valid only with ``squeeze``. The returned y replaces the argument in what follows. If y
    is the output of a 1x1 convolution of ``conv_input``, the average of y is the convolution of the input's average,
    and the narrower input is read where the statistics do not need y.
    """
    dtype = statistics_dtype(y)
    scale, offset, mean, var = weight, bias, running_mean, running_var
    if weight.dtype != dtype:
        scale, offset, mean, var = scale.to(dtype), offset.to(dtype), mean.to(dtype), var.to(dtype)
    if not training and torch.is_grad_enabled():  # a training pass may change them before the backward pass
        mean, var = mean.clone(), var.clone()
    m = mean.view(1, -1)
    if training:
        count = y.numel() // y.shape[1]
        if count == 1:
            raise ValueError(f'Expected more than 1 value per channel when training, got input size {y.shape}')
        y, m, batch_var = moments(y, True)
        assert batch_var is not None  # for type checkers, that of TorchScript included
        batch_mean = m.mean(0)
        mean, var = batch_mean.detach(), batch_var.detach()
        update_running_stats(
            running_mean, running_var, num_batches_tracked, mean, var * (count / (count - 1)), momentum)
        scale = scale * (batch_var + eps).rsqrt()
        offset = offset + scale * (mean - batch_mean)  # adds 0, and the derivative of the mean
        var = torch.ones_like(mean) - eps
    elif squeeze:
        if conv_input is not None and conv_weight is not None and _is_cheaper_squeeze(conv_input, y):
            m = _mean_behind(conv_input, conv_weight, conv_bias)
        else:
            y, m, _ = moments(y, False)
    z = torch.batch_norm(m, scale, offset, mean, var, False, 0.0, eps, False)
    return y, z.to(y.dtype).view(m.shape[0], -1, 1, 1), scale, offset, mean, var


def _kept(y: Tensor, drop_prob: float, scale_by_keep: bool) -> Tensor:
    """Factor (N, 1) of stochastic depth, drawn with the same random numbers as in timm's ``drop_path``."""
    keep = y.new_empty((y.shape[0], 1)).bernoulli_(1 - drop_prob)
    if drop_prob < 1 and scale_by_keep:
        keep.div_(1 - drop_prob)
    return keep


def recalibrate_add_act(
        y: Tensor,
        gate: Tensor | None,
        scale: Tensor,
        offset: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        drop_prob: float,
        scale_by_keep: bool,
        shortcut: Tensor | None,
        shortcut_gate: Tensor | None,
        relu: bool,
        inplace: bool,
) -> Tensor:
    """The rest of the tail, from the results of :func:`normalize_squeeze`, a gate (N, C, 1, 1) and stochastic depth."""
    factor = scale.new_ones((y.shape[0], 1)) if gate is None else gate.flatten(1)
    if drop_prob > 0:
        factor = factor * _kept(y, drop_prob, scale_by_keep)
    if shortcut_gate is not None:
        shortcut_gate = shortcut_gate.flatten(1)
    return scale_add_act(y, scale * factor, offset * factor, mean, var, eps, shortcut, shortcut_gate, relu, inplace)


def _by_kernels(
        x: Tensor, shortcut: Tensor | None, bn: Any, se: Any, drop_prob: float, scale_by_keep: bool, relu: bool,
        shortcut_gate: Tensor | None, inplace: bool, conv_input: Tensor | None, conv_weight: Tensor | None,
        conv_bias: Tensor | None,
) -> Tensor:
    from .kernels import functions  # imports Triton

    narrow = (se is not None and conv_input is not None and conv_weight is not None
              and _is_cheaper_squeeze(conv_input, x))
    normalized = functions.normalize(x, bn, 'linear' if se is not None and not narrow else '')
    factor = None
    if se is not None:
        z = normalized.pooled
        if narrow:
            m = _mean_behind(conv_input, conv_weight, conv_bias)  # type: ignore[arg-type]
            z = (normalized.weight * ((m - normalized.mean) * normalized.invstd) + normalized.bias).to(x.dtype)
        assert z is not None  # it was asked for
        factor = se.excite(z.view(*z.shape, 1, 1)).flatten(1)
    if drop_prob > 0:
        keep = _kept(x, drop_prob, scale_by_keep)
        factor = keep if factor is None else factor * keep
    if shortcut_gate is not None:
        shortcut_gate = shortcut_gate.flatten(1)
    return functions.scale_shift_add(
        normalized, factor, shortcut, shortcut_gate, functions.RELU_LAST if relu else functions.NO_RELU, inplace)


torch.fx.wrap('normalize_squeeze')  # single nodes under fx, since they read strides, modes and devices
torch.fx.wrap('recalibrate_add_act')


def residual_tail(
        x: Tensor,
        shortcut: Tensor | None,
        bn: Any,
        se: Any = None,
        drop_path: Any = None,
        act: nn.Module | None = None,
        shortcut_gate: Tensor | None = None,
        conv: Any = None,
        conv_input: Tensor | None = None,
) -> Tensor:
    """``act(drop_path(se(bn(x))) + shortcut_gate * shortcut)``, where ``bn(x)`` is never stored.

    Squeeze-and-Excitation (https://arxiv.org/abs/1709.01507), equations 2 to 4, after a BatchNorm: the squeeze of an
    affine map is the affine map of the squeeze, so the gate is known before BatchNorm is applied, and multiplies its
    scale and offset. Compared with a block without attention the only additional pass over the map is the squeeze,
    which training shares with BatchNorm's statistics, and no further tensor of the map's size is kept for the backward
    pass. The excitation's modules are called as modules, so their hooks run. Only a ReLU becomes part of the pass;
    another activation is called on the result. Ask :func:`can_fuse` first.

    Shape: x and shortcut (N, C, H, W), shortcut_gate (N, C, 1, 1) -> (N, C, H, W).

    Args:
        x: output of the block's last convolution.
        shortcut: what is added; None where nothing is (``3x3`` integration, Figure 5).
        bn: BatchNorm2d, on a GPU SyncBatchNorm too: batch statistics in training (the running statistics are updated),
            else the running ones.
        se: attention, or None (``pre``, ``post``, ``identity``).
        drop_path: stochastic depth, or None.
        act: activation, or None.
        shortcut_gate: multiplies the shortcut (``identity`` integration).
        conv: the module that computed x. If this is a Conv2d without hooks, whose output no other code holds, the
            result is written into x's memory where no gradient is recorded.
        conv_input: input of conv. With running statistics the squeeze after a 1x1 convolution is computed from this
            narrower map where that is cheaper.

    Raises:
        ValueError: one value per channel in training, as BatchNorm2d does.
    """
    training = not is_frozen(bn) and in_training(bn, x)
    plain_conv = is_plain_conv(conv)
    drop_prob = drop_path.drop_prob if hasattr(drop_path, 'drop_prob') and drop_path.training else 0.0
    scale_by_keep = getattr(drop_path, 'scale_by_keep', True)
    relu = type(act) is nn.ReLU and not has_hooks(act)
    weight, bias = (conv.weight, conv.bias) if plain_conv and _is_pointwise(conv) else (None, None)
    if has_kernels(x):
        x = _by_kernels(
            x, shortcut, bn, se, drop_prob, scale_by_keep, relu, shortcut_gate, plain_conv,
            None if weight is None or training else conv_input, weight, bias)
        return x if relu or act is None else act(x)
    x, z, scale, offset, mean, var = normalize_squeeze(
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var, getattr(bn, 'num_batches_tracked', None),
        getattr(bn, 'momentum', None), bn.eps, training, se is not None,
        None if weight is None else conv_input, weight, bias)
    inplace = plain_conv and not isinstance(x, torch.fx.Proxy)
    x = recalibrate_add_act(
        x, None if se is None else se.excite(z), scale, offset, mean, var, bn.eps,
        drop_prob, scale_by_keep, shortcut, shortcut_gate, relu, inplace)
    return x if relu or act is None else act(x)


def recalibrate(y: Tensor, se: Any, conv: Any, bn: nn.Module) -> Tensor:
    """``se(y)`` for a map that is too small for :func:`residual_tail`.

    At inference on a CPU the product is written into y's memory: allocating a map takes as long as filling it.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        y: BatchNorm's output.
        se: any module.
        conv: the module that computed BatchNorm's input.
        bn: BatchNorm.
    """
    if not can_overwrite(y, conv, bn) or has_hooks(se) or why_not_squeeze_excite(se):
        return se(y)
    gate = se.excite(se.squeeze(y))
    return y.mul_(gate) if gate.dtype == y.dtype else y * gate


def add_shortcut(x: Tensor, shortcut: Tensor, act: nn.Module) -> Tensor:
    """``act(x + shortcut)``, written into x's memory; at inference on a CPU a ReLU needs no pass of its own.

    Shape: (N, C, H, W) and a shape that can be broadcast to it -> (N, C, H, W).
    """
    if not is_eager_inference(x) or type(act) is not nn.ReLU or has_hooks(act):
        x += shortcut
        return act(x)
    return add_act_(x, shortcut, True)


def can_gate_weights(x: Tensor, conv: Any, bn: Any, se: Any, fused: bool | str = 'auto') -> bool:
    """Whether :func:`gated_conv` gives ``se(bn(conv(x)))`` and saves time: for one image at inference on a CPU.

    The convolution's weights have to be fewer than its outputs, since they are multiplied in the place of the outputs.

    Args:
        x: the input of conv.
        conv: the last convolution of the block.
        bn: the BatchNorm after it.
        se: the attention after that.
        fused: as in :func:`can_fuse`; with ``'auto'`` the output has to be so large that the saved passes take more
            time than the additional calls.
    """
    if not is_eager_inference(x) or torch.is_autocast_enabled('cpu'):
        return False
    if not (x.is_cpu and x.shape[0] == 1 and x.element_size() >= 4):
        return False
    if not fused or not is_plain_conv(conv) or not _is_pointwise(conv):
        return False
    positions = x.shape[2] * x.shape[3]
    if positions <= conv.in_channels or (fused == 'auto' and conv.out_channels * positions < _WORTH_GATING):
        return False
    if has_hooks(bn, se) or why_not_squeeze_excite(se):
        return False
    if not is_frozen(bn) and (bn.training or why_not_batch_norm(bn)):
        return False
    tensors = conv.weight, bn.weight, bn.running_var
    return all(type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == x.dtype for tensor in tensors)


def gated_conv(x: Tensor, conv: Any, bn: Any, se: Any) -> Tensor:
    """``se(bn(conv(x)))`` for one image, by a single pass that writes the map.

    The mean behind a 1x1 convolution is the convolution of its input's mean, so the gate is known before the map is
    computed. With one image, gate and BatchNorm are one factor for each output channel, and multiply the
    convolution's weights in the place of its output. Ask :func:`can_gate_weights` first.

    Shape: (1, C_in, H, W) -> (1, C_out, H, W).
    """
    scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
    offset = torch.addcmul(bn.bias, bn.running_mean, scale, value=-1)
    if conv.bias is not None:
        offset = torch.addcmul(offset, conv.bias, scale)
    mean = product(x.mean((2, 3), keepdim=True), conv.weight, None).flatten()
    gate = se.excite(torch.addcmul(offset, mean, scale).view(1, -1, 1, 1)).flatten()
    return F.conv2d(x, conv.weight * (scale * gate).view(-1, 1, 1, 1), offset * gate)
