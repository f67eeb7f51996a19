"""Selective Kernel convolution (Li et al., arXiv 1903.06586)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._bypass import has_hooks, in_training, is_plain_conv, needs_formulas, why_not_batch_norm, why_not_eager
from ._second_order import differentiable_gradients
from .batch_norm_relu import batch_norm_relu, differentiable_branch, recompute
from .kernels import has_kernels
from .pointwise import pointwise
from .squeeze_excite import check_option, reduced_channels, spatial_mean

__all__ = ['SELECTS', 'SelectiveKernel', 'SelectiveKernelAttn', 'SelectiveKernelBranch', 'selective_channels']

# These functions become single nodes under fx, which looks up their names in the module that calls them.
torch.fx.wrap('batch_norm_relu')
torch.fx.wrap('select')
torch.fx.wrap('spatial_mean')

SELECTS = ('softmax', 'sum')


def selective_channels(
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_divisor: int = 1,
        rd_min_channels: int | None = None,
) -> int:
    """Width d of the attention's inner layer.

    ``rd_divisor=1`` is the paper's d = max(C / r, L), equation 4, with L = ``rd_min_channels``, 32 if not given. Any
    other divisor is timm's rule: the multiple of it nearest to C / r, but not more than 10 % below it.
    """
    width = reduced_channels(channels, rd_ratio, rd_divisor)
    if rd_divisor == 1:
        return max(width, 32 if rd_min_channels is None else rd_min_channels)
    if width < 0.9 * channels * rd_ratio:
        width += rd_divisor
    return max(width, rd_min_channels or 1)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)``, on the CPU with quicker derivatives where the stride equals the dilation.

    Such a convolution with stride and dilation 2 reads only every second pixel. A convolution without dilation over
    these pixels gives the same result, and the CPU has quick kernels for its derivatives, unlike for those of a dilated
    convolution with a stride.
    """
    step, padding = conv.stride[0], conv.padding
    if (step > 1 and conv.stride == conv.dilation == (step, step) and conv.padding_mode == 'zeros'
            and isinstance(padding, tuple) and not any(p % step for p in padding)
            and x.is_cpu and torch.is_grad_enabled()):
        x = F.avg_pool2d(x, 1, step)
        return F.conv2d(x, conv.weight, conv.bias, 1, (padding[0] // step, padding[1] // step), 1, conv.groups)
    return conv(x)


class SelectiveKernelBranch(nn.Module):
    """One branch of the split: convolution, norm, (drop), activation, (anti-aliasing); names are timm's."""

    def __init__(
            self,
            in_channels: int,
            out_channels: int,
            kernel_size: int,
            stride: int,
            dilation: int,
            groups: int,
            act_layer: type[nn.Module],
            norm_layer: Callable[..., nn.Module],
            aa_layer: Callable[..., nn.Module] | None,
            drop_layer: Callable[[], nn.Module] | None,
            device: torch.device | str | None,
            dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        use_aa = aa_layer is not None and stride > 1
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=1 if use_aa else stride,
            padding=dilation * (kernel_size - 1) // 2, dilation=dilation, groups=groups, bias=False,
            device=device, dtype=dtype)
        self.bn = norm_layer(out_channels, device=device, dtype=dtype)
        self.drop = drop_layer() if drop_layer is not None else None
        self.act = act_layer(inplace=True)
        self.aa = None
        if aa_layer is not None and use_aa:
            self.aa = aa_layer(channels=out_channels, stride=stride, device=device, dtype=dtype)

    @torch.jit.unused
    def why_not_fused(self, x: Tensor) -> str:
        """Why norm and activation cannot be computed again in the backward pass; an empty string if they can."""
        if type(self.act) is not nn.ReLU:
            return f'the activation is {type(self.act).__name__}, not nn.ReLU'
        if self.drop is not None:
            return 'a branch has a drop layer'
        if self.aa is not None:
            return 'a branch has an anti-aliasing layer'
        if has_hooks(self, self.bn, self.act):
            return 'hooks are registered on modules that would not be called'
        return why_not_batch_norm(self.bn, synchronised=has_kernels(x))

    @torch.jit.unused
    def convolve(self, x: Tensor) -> Tensor:
        """The convolution's output, by :func:`_convolve` where the convolution has no hooks."""
        plain = is_plain_conv(self.conv) and not isinstance(x, torch.fx.Proxy)
        return _convolve(self.conv, x) if plain else self.conv(x)

    @torch.jit.unused
    def normalize(self, y: Tensor, private: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        """U of one branch, its mean over the map, and the recipe to compute U again."""
        bn: Any = self.bn
        return batch_norm_relu(
            y, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.num_batches_tracked,
            in_training(bn, y), bn.momentum, bn.eps, private and is_plain_conv(self.conv))

    def forward(self, x: Tensor) -> Tensor:
        """U of one branch. Shape: (N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        x = self.bn(self.conv(x))
        if self.drop is not None:
            x = self.drop(x)
        x = self.act(x)
        if self.aa is not None:
            x = self.aa(x)
        return x


class SelectiveKernelAttn(nn.Module):
    """Weights of the branches from their pooled sum, equations 3 to 5: ``softmax(fc_select(relu(bn(fc_reduce(z)))))``.

    A forward hook on this module sees the weights of all branches, and may return others. Both layers are 1x1
    convolutions without bias, and the norm is BatchNorm whatever the branches have: a norm over groups of channels
    would have one value to normalise.

    With one sample in training, BatchNorm has one value per channel and no variance (timm raises). Such a batch is
    normalised by the running statistics here, and does not change them. torch's own error is raised in scripted and
    traced modules, for ``SyncBatchNorm``, which counts the samples of all processes, and for a norm with hooks.

    Shape: (N, C, 1, 1) -> (N, M, C, 1, 1), a softmax over M.

    Args:
        channels: C.
        num_paths: M.
        attn_channels: d.
        act_layer: activation between the layers.
        device: device of the parameters.
        dtype: type of the parameters.
    """

    def __init__(
            self,
            channels: int,
            num_paths: int = 2,
            attn_channels: int = 32,
            act_layer: type[nn.Module] = nn.ReLU,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_paths = num_paths
        self.fc_reduce = nn.Conv2d(channels, attn_channels, 1, bias=False, device=device, dtype=dtype)
        self.bn = nn.BatchNorm2d(attn_channels, device=device, dtype=dtype)
        self.act = act_layer(inplace=True)
        self.fc_select = nn.Conv2d(attn_channels, channels * num_paths, 1, bias=False, device=device, dtype=dtype)

    @torch.jit.unused
    def _logits(self, z: Tensor) -> Tensor:
        z = pointwise(self.fc_select, self.act(self._norm(pointwise(self.fc_reduce, z))))
        if torch.jit.is_tracing() and type(self.fc_select) is nn.Conv2d:  # with a known width the file has one Reshape
            return z.view(-1, self.num_paths, self.fc_select.out_channels // self.num_paths, 1, 1)
        return z.unflatten(1, (self.num_paths, -1))

    @torch.jit.unused
    def _norm(self, z: Tensor) -> Tensor:
        """BatchNorm, by the running statistics for a batch of one sample."""
        bn = self.bn
        if (bn.training and not isinstance(z, torch.fx.Proxy) and z.shape[0] == 1 and not why_not_batch_norm(bn)
                and not has_hooks(bn)):
            return F.batch_norm(z, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps)
        return bn(z)

    def forward(self, z: Tensor) -> Tensor:
        """Weights of the branches."""
        if torch.jit.is_scripting():
            z = self.fc_select(self.act(self.bn(self.fc_reduce(z)))).unflatten(1, (self.num_paths, -1))
        else:
            z = self._logits(z)
        return z.softmax(1)


def _as_map(pooled: Tensor | None) -> Tensor:
    """Shape: (N, C) -> (N, C, 1, 1)."""
    assert pooled is not None  # the caller asked for pooling
    return pooled[..., None, None]


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _weighted_sum(weights: Tensor, us: list[Tensor], normalised: bool) -> Tensor:
    """Equation 6. Two branches whose weights are ``normalised`` to a sum of one take a single pass."""
    weights = weights.to(us[0].dtype)
    if len(us) == 2 and normalised:
        return torch.lerp(us[1], us[0], weights[:, 0])
    v = us[0] * weights[:, 0]
    for i in range(1, len(us)):
        v = torch.addcmul(v, us[i], weights[:, i])
    return v


class _Select(torch.autograd.Function):
    """The weighted sum of branches that the backward pass computes again from their recipes."""

    @staticmethod
    def forward(ctx, weights, eps, training, normalised, *tensors):
        M = len(eps)
        ctx.eps, ctx.training, ctx.normalised = eps, training, normalised
        ctx.save_for_backward(weights, *tensors[M:])
        return _weighted_sum(weights, list(tensors[:M]), normalised)

    @staticmethod
    def backward(ctx, grad):
        weights, *recipes = ctx.saved_tensors
        M = len(ctx.eps)
        if needs_formulas(grad):
            us = [differentiable_branch(recipes[5 * i:5 * i + 5], ctx.training[i], ctx.eps[i]) for i in range(M)]
            grads = differentiable_gradients(
                lambda weights, *us: (_weighted_sum(weights, list(us), ctx.normalised),), (weights, *us),
                [True] * (M + 1), (grad,))
            return grads[0], None, None, None, *grads[1:], *[None] * len(recipes)
        w = weights.to(grad.dtype)
        us = [recompute(recipes[5 * i:5 * i + 5], ctx.eps[i]) for i in range(M)]
        if M == 2 and ctx.normalised:  # as in the sum, the second weight is one minus the first
            first = us[0].sub_(us[1]).mul_(grad).sum((2, 3), keepdim=True, dtype=weights.dtype)
            sums = [first, torch.zeros_like(first)]
            torch.mul(grad, w[:, 0], out=us[0])
            torch.mul(grad, 1 - w[:, 0], out=us[1])
        else:
            sums = [u.mul_(grad).sum((2, 3), keepdim=True, dtype=weights.dtype) for u in us]
            for i, u in enumerate(us):
                torch.mul(grad, w[:, i], out=u)
        return torch.stack(sums, 1), None, None, None, *us, *[None] * len(recipes)


def select(
        weights: Tensor,
        us: list[Tensor],
        recipes: list[list[Tensor]],
        eps: list[float],
        training: list[bool],
        private: bool,
        normalised: bool,
) -> Tensor:
    """Weighted sum of the branches, equation 6; autograd keeps the branches' recipes instead of the branches.

    ``private`` says that no other code holds the branches: without gradients the sum is written into one of them.
    ``normalised`` says that the weights are a softmax over the branches.

    Shape: (N, M, C, 1, 1), M times (N, C, H, W) -> (N, C, H, W).
    """
    if torch.jit.is_scripting() or not torch.is_grad_enabled():
        if private and normalised and len(us) == 2:
            return torch.lerp(us[1], us[0], weights[:, 0].to(us[0].dtype), out=us[1])
        return _weighted_sum(weights, us, normalised)
    return _select(weights, us, recipes, eps, training, normalised)


@torch.jit.unused
def _select(
        weights: Tensor, us: list[Tensor], recipes: list[list[Tensor]], eps: list[float], training: list[bool],
        normalised: bool,
) -> Tensor:
    tensors = [tensor for recipe in recipes for tensor in recipe]
    return _Select.apply(weights, eps, training, normalised, *us, *tensors)


class SelectiveKernel(nn.Module):
    """Selective Kernel convolution: split into branches of different kernels, fuse, select.

    Paper: "Selective Kernel Networks", https://arxiv.org/abs/1903.06586, section 3.1, Figure 1. Parameters have the
    names and shapes of timm's ``SelectiveKernel``. Two defaults are the paper's and not timm's: the input is not
    split, and the inner width is max(C / r, L).

    With ``fused`` the branches' norms and activations are not stored for the backward pass but computed again from
    the convolutions' outputs, and the weighted sum of two branches is one pass. Where that is impossible (a norm
    other than ``nn.BatchNorm2d``, an activation other than ReLU, a drop or anti-aliasing layer, hooks on modules that
    would not be called), and in compiled, scripted and exported code, the modules run one by one.

    Shape: (N, C_in, H, W) -> (N, C, H / stride, W / stride).

    Args:
        in_channels: C_in.
        out_channels: C; C_in if not given.
        kernels: one odd size per branch, M >= 2 of them.
        stride: stride of every branch.
        dilation: multiplies the dilation of every branch, for networks of a smaller output stride.
        groups: groups of every convolution, or one number per branch (Table 6).
        keep_3x3: a kernel k > 3 is a 3x3 of dilation (k - 1) / 2, as in the paper; otherwise a true k x k.
        split_input: every branch gets its own C_in / M channels instead of all, as in timm's trained ``skresnet18`` and
            ``skresnet34``.
        select: ``'softmax'``, or ``'sum'``: the plain sum of the branches, without attention (Table 7).
        rd_ratio: 1 / r of the paper, see :func:`selective_channels`.
        rd_channels: the attention's inner width d; replaces ``rd_ratio``, ``rd_divisor`` and ``rd_min_channels``.
        rd_divisor: 1 for the paper's rule, anything else for timm's.
        rd_min_channels: L of the paper: the least width.
        act_layer: activation in the branches and in the attention.
        norm_layer: norm of the branches, called with the channels, ``device`` and ``dtype``.
        aa_layer: called with ``channels``, ``stride``, ``device`` and ``dtype`` where stride > 1, as timm's
            ``create_aa`` with its first argument bound; this layer, not the convolution, then has the stride.
        drop_layer: makes a layer between norm and activation (DropBlock).
        fused: ``'auto'`` to fuse where possible, ``True`` to raise where it is impossible, ``False`` for the modules
            one by one. The attribute may be set later.
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        ValueError: fewer than two kernels, an even or non-positive kernel, a number of groups that differs from that of
            kernels, channels that groups or branches do not divide, a number below one, an unknown ``select`` or
            ``fused``; from ``forward``, ``fused=True`` where it is impossible.
    """

    def __init__(
            self,
            in_channels: int,
            out_channels: int | None = None,
            kernels: Sequence[int] = (3, 5),
            stride: int = 1,
            dilation: int = 1,
            groups: int | Sequence[int] = 1,
            keep_3x3: bool = True,
            split_input: bool = False,
            select: str = 'softmax',
            rd_ratio: float = 1 / 16,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            rd_min_channels: int | None = None,
            act_layer: type[nn.Module] = nn.ReLU,
            norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
            aa_layer: Callable[..., nn.Module] | None = None,
            drop_layer: Callable[[], nn.Module] | None = None,
            fused: bool | str = 'auto',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        counts = {
            'in_channels': in_channels, 'out_channels': out_channels, 'stride': stride, 'dilation': dilation,
            'rd_channels': rd_channels, 'rd_divisor': rd_divisor, 'rd_min_channels': rd_min_channels}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f'{name}={count}: a positive integer is needed')
        if isinstance(kernels, int):
            raise ValueError(f'kernels={kernels}: a sequence of sizes is needed, one for each of two or more branches')
        M = len(kernels)
        groups = [groups] * M if isinstance(groups, int) else list(groups)
        if M < 2:
            raise ValueError(f'kernels={tuple(kernels)}: at least two branches are needed to select from')
        if any(k < 1 or k % 2 == 0 for k in kernels):
            raise ValueError(f'kernels={tuple(kernels)}: every size must be odd and positive')
        if len(groups) != M or any(g < 1 for g in groups):
            raise ValueError(
                f'groups={tuple(groups)}: one positive number is needed, or one for each of the {M} kernels')
        if split_input and in_channels % M:
            raise ValueError(
                f'split_input=True cannot share {in_channels} input channels equally among {M} branches; choose '
                'False, or a number of kernels that divides the channels')
        check_option('select', select, SELECTS)
        if not isinstance(fused, bool) and fused != 'auto':
            raise ValueError(f"fused={fused!r} is not True, False or 'auto'")
        self.in_channels = in_channels // M if split_input else in_channels
        if any(self.in_channels % g or out_channels % g for g in groups):
            share = ' (with split_input a branch gets its share)' if split_input else ''
            raise ValueError(
                f'groups={tuple(groups)} do not divide {self.in_channels} input{share} and {out_channels} output '
                'channels; choose divisors of both')
        self.split_input = split_input
        self.fused = fused
        self.paths = nn.ModuleList([
            SelectiveKernelBranch(
                self.in_channels, out_channels, min(k, 3) if keep_3x3 else k, stride,
                dilation * max(1, (k - 1) // 2) if keep_3x3 else dilation, g,
                act_layer, norm_layer, aa_layer, drop_layer, device, dtype)
            for k, g in zip(kernels, groups, strict=True)])
        self.attn = None
        if select == 'softmax':
            if rd_channels is None:
                rd_channels = selective_channels(out_channels, rd_ratio, rd_divisor, rd_min_channels)
            self.attn = SelectiveKernelAttn(out_channels, M, rd_channels, act_layer, device, dtype)

    @torch.jit.unused
    def _is_fused(self, x: Tensor) -> bool:
        if self.fused is False or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        reason = 'the plain sum of branches has no attention' if self.attn is None else ''
        if not isinstance(x, torch.fx.Proxy):
            reason = reason or why_not_eager(x)
        paths: Any = self.paths
        for path in paths:
            reason = reason or path.why_not_fused(x)
        if reason and self.fused is True:
            raise ValueError(f"fused=True (attn_fused) is impossible: {reason}; choose 'auto' or False")
        return not reason

    @torch.jit.unused
    def _is_softmax(self) -> bool:
        """Whether the attention's output is a softmax, which no hook and no other class can have changed."""
        return type(self.attn) is SelectiveKernelAttn and not has_hooks(self.attn)

    @torch.jit.unused
    def _forward_fused(self, xs: list[Tensor]) -> Tensor:
        attn: Any = self.attn
        paths: Any = self.paths
        ys = [path.convolve(xs[i]) for i, path in enumerate(paths)]  # fx cannot iterate over the result of split
        if all(has_kernels(y) for y in ys):
            return self._forward_by_kernels(ys)
        us, means, recipes = [], [], []
        private = not isinstance(xs[0], torch.fx.Proxy)  # a traced graph may return any of its values
        for path, y in zip(paths, ys, strict=True):
            u, mean, recipe = path.normalize(y, private)
            us.append(u)
            means.append(mean)
            recipes.append(recipe)
        eps, training = [path.bn.eps for path in paths], [in_training(path.bn, xs[0]) for path in paths]
        return select(attn(_sum(means)), us, recipes, eps, training, private, self._is_softmax())

    @torch.jit.unused
    def _forward_by_kernels(self, ys: list[Tensor]) -> Tensor:
        """The means and the weighted sum of the branches, from the convolutions' outputs; no branch is stored.

        Two branches take 9 reads and writes of a map where the modules take 15, and 10 in the backward pass.
        """
        from .kernels import functions  # imports Triton

        attn: Any = self.attn
        paths: Any = self.paths
        branches = [functions.normalize(y, path.bn, 'relu') for path, y in zip(paths, ys, strict=True)]
        weights = attn(_sum([_as_map(branch.pooled) for branch in branches])).flatten(2)
        v = None
        for i, (path, branch) in enumerate(zip(paths, branches, strict=True)):
            v = functions.scale_shift_add(
                branch, weights[:, i], v, None, functions.RELU_FIRST, inplace=is_plain_conv(path.conv))
        assert v is not None  # there are at least two branches
        return v

    def forward(self, x: Tensor) -> Tensor:
        """Split (equation 1), fuse (equations 2 to 4) and select (equations 5 and 6)."""
        xs = x.split(self.in_channels, 1) if self.split_input else [x] * len(self.paths)
        if not torch.jit.is_scripting() and self._is_fused(x):
            return self._forward_fused(xs)
        us = [path(xs[i]) for i, path in enumerate(self.paths)]
        if self.attn is None:
            return _sum(us)
        weights = self.attn(_sum([spatial_mean(u) for u in us]))
        if torch.jit.is_scripting():
            return _weighted_sum(weights, us, False)
        if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():  # other forms are a dozen ONNX operators
            return _sum([u * weights[:, i] for i, u in enumerate(us)])
        return _weighted_sum(weights, us, self._is_softmax())
