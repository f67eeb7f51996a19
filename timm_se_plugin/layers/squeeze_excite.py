"""Squeeze-and-Excitation (Hu et al., arXiv 1709.01507)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .pointwise import pointwise
from .zero_start import start_at_zero

__all__ = [
    'GATES', 'SQUEEZES', 'DoubleSigmoid', 'SqueezeExcite', 'check_option', 'reduced_channels', 'spatial_mean',
    'why_not_squeeze_excite',
]


class DoubleSigmoid(nn.Module):
    """``2 * sigmoid(x)``: a gate in (0, 2) that is exactly 1 at 0, with slope 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        """Gate of x, elementwise."""
        return 2 * x.sigmoid()


SQUEEZES = ('avg', 'max', 'none')
INITS = ('default', 'identity')
GATES: dict[str, type[nn.Module]] = {
    'sigmoid': nn.Sigmoid,
    'tanh': nn.Tanh,
    'relu': nn.ReLU,
    'hard_sigmoid': nn.Hardsigmoid,
    'double_sigmoid': DoubleSigmoid,
}


def check_option(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise ValueError unless the value of an option is one of `choices`."""
    if value not in choices:
        raise ValueError(f'{name}={value!r} is not one of {", ".join(choices)}')


def spatial_mean(x: Tensor) -> Tensor:
    """Mean over H and W, accumulated in float32 at least. Shape: (N, C, H, W) -> (N, C, 1, 1).

    In float16 the sum over a large map overflows on CPU, and ``AdaptiveAvgPool2d`` gives NaN on CUDA in
    channels_last (pytorch issue 43992); in bfloat16 the sum would keep eight bits.
    """
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        return x.mean((2, 3), keepdim=True, dtype=torch.float32).to(x.dtype)
    return x.mean((2, 3), keepdim=True)


torch.fx.wrap('spatial_mean')  # a single node under fx, whose proxies have no dtype


def reduced_channels(channels: int, rd_ratio: float, rd_divisor: int = 1) -> int:
    """Width of the excitation's inner layer.

    ``rd_divisor=1`` is the paper's C // r. Any other divisor is timm's rule: the multiple of it that is nearest
    to C / r, and at least one divisor.

    Raises:
        ValueError: a ratio outside (0, 1], or a divisor below 1.
    """
    if not 0 < rd_ratio <= 1:
        hint = f'; did you mean 1/{rd_ratio:g}?' if rd_ratio > 1 else ''
        raise ValueError(f'rd_ratio={rd_ratio} is not a fraction in (0, 1]{hint}')
    if rd_divisor < 1:
        raise ValueError(f'rd_divisor={rd_divisor}: a positive integer is needed')
    width = channels * rd_ratio
    if rd_divisor == 1:
        return max(1, int(width + 1e-6))  # 1e-6: 3 * (1 / 3) may fall short of 1
    return max(rd_divisor, int(width + rd_divisor / 2) // rd_divisor * rd_divisor)


class SqueezeExcite(nn.Module):
    """Squeeze-and-Excitation block: ``x * gate(fc2(act(fc1(squeeze(x)))))``.

    Paper: "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507, equations 2 to 4, Figure 1. Parameters
    have timm's names and shapes (``fc1``, ``fc2``, 1x1 convolutions). Two defaults differ from timm's ``SEModule``:
    the inner width is the paper's C // r (timm rounds to a multiple of 8), and pooling accumulates in float32.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C.
        rd_ratio: 1 / r of the paper; the inner width is C * rd_ratio, see :func:`reduced_channels`.
        rd_channels: inner width; takes the place of ``rd_ratio``.
        rd_divisor: 1 for the paper's width, 8 for timm's.
        squeeze: ``'avg'`` or ``'max'`` over H and W (Table 11), or ``'none'``: no pooling, the excitation is computed
            for every position and the gate has shape (N, C, H, W) (NoSqueeze, Table 16).
        bias: bias in both layers. The released weights have it, the paper's ablations have none.
        act_layer: activation between the layers.
        gate: a name in ``GATES`` (Table 12).
        init: ``'identity'`` for gates that are exactly 1 at the start, which needs ``gate='double_sigmoid'``.
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        ValueError: an unknown ``squeeze``, ``gate`` or ``init``, a ratio outside (0, 1], a width or divisor below 1,
            or a gate that is not 1 at 0 with ``init='identity'``.
    """

    def __init__(
            self,
            channels: int,
            rd_ratio: float = 1 / 16,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            squeeze: str = 'avg',
            bias: bool = True,
            act_layer: type[nn.Module] = nn.ReLU,
            gate: str = 'sigmoid',
            init: str = 'default',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option('squeeze', squeeze, SQUEEZES)
        check_option('gate', gate, GATES)
        check_option('init', init, INITS)
        if rd_channels is None:
            rd_channels = reduced_channels(channels, rd_ratio, rd_divisor)
        if rd_channels < 1:
            raise ValueError(f'rd_channels={rd_channels}: the inner width must be a positive integer')
        self.squeeze_type = squeeze
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, bias=bias, device=device, dtype=dtype)
        self.act = act_layer()  # not in place: of a view of a matrix product, autograd would copy the gradient
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, bias=bias, device=device, dtype=dtype)
        self.gate = GATES[gate]()
        self.init = init
        if init == 'identity':
            self.init_identity()

    def init_identity(self) -> None:
        """Zero the last layer, so that every gate is exactly 1.

        Raises:
            ValueError: the gate is not 1 at 0.
        """
        if not isinstance(self.gate, DoubleSigmoid):
            raise ValueError(f"init='identity' needs the gate double_sigmoid, not {type(self.gate).__name__}")
        start_at_zero(self.fc2)

    def squeeze(self, x: Tensor) -> Tensor:
        """Global information, equation 2. Shape: (N, C, H, W) -> (N, C, 1, 1), or unchanged for ``'none'``."""
        if self.squeeze_type == 'avg':
            return spatial_mean(x)
        if self.squeeze_type == 'max':
            return x.amax((2, 3), keepdim=True)
        return x

    def excite(self, z: Tensor) -> Tensor:
        """Gate from the squeezed input, equation 3. Shape: (N, C, 1, 1) -> (N, C, 1, 1)."""
        if torch.jit.is_scripting() or self.squeeze_type == 'none':
            return self.gate(self.fc2(self.act(self.fc1(z))))
        return self._excite_pooled(z)

    @torch.jit.unused
    def _excite_pooled(self, z: Tensor) -> Tensor:
        return self.gate(pointwise(self.fc2, self.act(pointwise(self.fc1, z))))

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate x, equation 4."""
        return x * self.excite(self.squeeze(x))


def why_not_squeeze_excite(se: Any) -> str:
    """Why this module does not scale x by ``excite`` of its average over the map; an empty string if it does."""
    kind = type(se)
    if not isinstance(se, SqueezeExcite) or kind.forward is not SqueezeExcite.forward or \
            kind.squeeze is not SqueezeExcite.squeeze:
        return f'the attention is a {kind.__name__}, not known to scale by the excitation of an average'
    return '' if se.squeeze_type == 'avg' else f'the squeeze is {se.squeeze_type!r}, not the average'
