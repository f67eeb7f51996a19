"""Bottleneck Attention Module (Park et al., arXiv 1807.06514)."""

from typing import Any

import torch
from torch import Tensor, nn

from .squeeze_excite import reduced_channels, spatial_mean

__all__ = ['BottleneckAttention']

torch.fx.wrap('spatial_mean')  # fx looks up the name in the module that calls the function


class BottleneckAttention(nn.Module):
    """BAM: ``x + x * sigmoid(channel(x) + spatial(x))``.

    Paper: "BAM: Bottleneck Attention Module", https://arxiv.org/abs/1807.06514, equations 1 to 4, Figure 2. The paper
    places one BAM at the end of each of the first three stages, before the resolution is halved. The spatial branch has
    norms and activations between its convolutions, which equation 4 leaves out: without them the convolutions would be
    one linear map.

    Shape: (N, C, H, W) -> (N, C, H, W).

    Args:
        channels: C.
        rd_ratio: 1 / r, of both branches.
        rd_channels: inner width; takes the place of ``rd_ratio``.
        rd_divisor: 1 for C // r, 8 for timm's rule.
        dilation: d, of the spatial branch's two 3x3 convolutions.
        act_layer: the inner activation; called with ``inplace=True``.
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        ValueError: a ratio outside (0, 1], or a width or divisor below 1; from ``forward`` in training, a
            batch of one sample, in which the channel branch's norm has a single value per channel.
    """

    def __init__(
            self,
            channels: int,
            rd_ratio: float = 1 / 16,
            rd_channels: int | None = None,
            rd_divisor: int = 1,
            dilation: int = 4,
            act_layer: type[nn.Module] = nn.ReLU,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        width = reduced_channels(channels, rd_ratio, rd_divisor) if rd_channels is None else rd_channels
        if width < 1:
            raise ValueError(f'rd_channels={rd_channels!r}: the inner width must be a positive integer')
        self.channel = nn.Sequential(  # equation 3, which ends in the norm
            nn.Conv2d(channels, width, 1, **dd),
            act_layer(inplace=True),
            nn.Conv2d(width, channels, 1, **dd),
            nn.BatchNorm2d(channels, **dd),
        )
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 1, **dd), nn.BatchNorm2d(width, **dd)]
        for _ in range(2):
            layers += [
                act_layer(inplace=True), nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, **dd),
                nn.BatchNorm2d(width, **dd)]
        self.spatial = nn.Sequential(  # equation 4
            *layers, act_layer(inplace=True), nn.Conv2d(width, 1, 1, **dd), nn.BatchNorm2d(1, **dd))
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Recalibrate x, equation 1."""
        return x + x * self.gate(self.channel(spatial_mean(x)) + self.spatial(x))
