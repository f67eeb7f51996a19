"""Spatial, and concurrent spatial and channel, squeeze and excitation (Roy et al., arXiv 1803.02579)."""

from typing import Any

import torch
from torch import Tensor, nn

from .squeeze_excite import GATES, INITS, SqueezeExcite, check_option
from .zero_start import start_at_zero

__all__ = ['ConcurrentSqueezeExcite', 'SpatialSqueezeExcite']


class SpatialSqueezeExcite(nn.Module):
    """sSE: squeeze the channels with a 1x1 convolution, excite the positions: ``x * gate(conv(x))``.

    Paper: "Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional Networks",
    https://arxiv.org/abs/1803.02579, section 2.2, Figure 1c.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C.
        bias: bias of the convolution.
        gate: a name in ``GATES``; the paper's is ``'sigmoid'``.
        init: ``'identity'`` zeroes the convolution; with the gate ``'double_sigmoid'`` every position starts at 1.
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        ValueError: an unknown ``gate`` or ``init``.
    """

    def __init__(
            self,
            channels: int,
            bias: bool = True,
            gate: str = 'sigmoid',
            init: str = 'default',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_option('gate', gate, GATES)
        check_option('init', init, INITS)
        self.conv = nn.Conv2d(channels, 1, 1, bias=bias, device=device, dtype=dtype)
        self.gate = GATES[gate]()
        self.init = init
        if init == 'identity':
            self.init_identity()

    def init_identity(self) -> None:
        """Zero the convolution, so that every position has the gate's value at 0."""
        start_at_zero(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate the positions of x."""
        return x * self.gate(self.conv(x))


class ConcurrentSqueezeExcite(nn.Module):
    """scSE: the sum of x recalibrated by channel (cSE) and by position (sSE).

    Paper: https://arxiv.org/abs/1803.02579, section 2.3, Figure 1d. Its cSE is :class:`SqueezeExcite` with r = 2.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C.
        rd_ratio: 1 / r of cSE; the paper's is 1/2.
        rd_channels: inner width of cSE; takes the place of ``rd_ratio``.
        rd_divisor: 1 for C // r, 8 for timm's rule.
        bias: bias in every layer.
        act_layer: activation between the layers of cSE.
        gate: the gate of both halves, a name in ``GATES``.
        init: ``'identity'`` zeroes the last layer of both: with ``'sigmoid'`` each half is x / 2, and the sum is x.
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        ValueError: as :class:`SqueezeExcite`; or a gate that is not 1/2 at 0 with ``init='identity'``.
    """

    def __init__(
            self,
            channels: int,
            rd_ratio: float = 1 / 2,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            bias: bool = True,
            act_layer: type[nn.Module] = nn.ReLU,
            gate: str = 'sigmoid',
            init: str = 'default',
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.cse = SqueezeExcite(
            channels, rd_ratio, rd_channels, rd_divisor, bias=bias, act_layer=act_layer, gate=gate, **dd)
        self.sse = SpatialSqueezeExcite(channels, bias=bias, gate=gate, **dd)
        check_option('init', init, INITS)
        self.init = init
        if init == 'identity':
            self.init_identity()

    def init_identity(self) -> None:
        """Zero the last layers, so that the sum is x.

        Raises:
            ValueError: the gate is not 1/2 at 0.
        """
        if not isinstance(self.cse.gate, nn.Sigmoid | nn.Hardsigmoid):
            raise ValueError(
                "init='identity' needs a gate that is 1/2 at 0, sigmoid or hard_sigmoid, not "
                f'{type(self.cse.gate).__name__}')
        self.sse.init_identity()
        start_at_zero(self.cse.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate x by channel and by position."""
        return self.cse(x) + self.sse(x)
