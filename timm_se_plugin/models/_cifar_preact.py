"""Pre-activation residual networks for 32x32 images."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

from ..placement.finding import restart_identity
from ._cifar_networks import CifarLevels, as_timm_counts, keep_size_in_stem, refuse

__all__ = ['CifarResNetV2']


class CifarResNetV2(CifarLevels, ResNetV2):
    """Pre-activation ResNet for 32x32 images: a 3x3 stem that keeps the size, no pooling, and three stages.

    Papers: "Identity Mappings", https://arxiv.org/abs/1603.05027, Table 1, whose projections read the first activation,
    and "Wide Residual Networks", https://arxiv.org/abs/1605.07146, Table 1. Keys are those of
    timm's ``ResNetV2``; a bottleneck's stride is in its 3x3 convolution, as in timm.

    Args:
        layers: number of blocks of each stage.
        channels: channels of each stage's output.
        in_chans: channels of the images.
        stem_chs: channels of the stem.
        output_stride: 2, or 4 and more; below 4 dilation takes the place of strides.
        zero_init_last: start each branch at zero.
        **kwargs: as ``timm.models.resnetv2.ResNetV2``, except ``stem_type``.

    Raises:
        ValueError: an invalid ``output_stride``, or a ``stem_type``.
    """

    def __init__(
            self,
            layers: Sequence[int],
            channels: Sequence[int],
            in_chans: int = 3,
            stem_chs: int = 16,
            output_stride: int = 32,
            zero_init_last: bool = False,
            **kwargs: Any,
    ) -> None:
        refuse(kwargs, ('stem_type',), 'whose stem is one 3x3 convolution')
        super().__init__(
            layers, channels, in_chans=in_chans, stem_chs=stem_chs, output_stride=as_timm_counts(output_stride),
            **{'conv_layer': create_conv2d, 'norm_layer': BatchNormAct2d, **kwargs})
        levels: Any = self.feature_info
        keep_size_in_stem(levels)
        stem = nn.Conv2d(
            in_chans, levels[0]['num_chs'], 3, padding=1, bias=False,
            device=kwargs.get('device'), dtype=kwargs.get('dtype'))
        self.stem = nn.Sequential(OrderedDict(conv=stem))
        self.init_weights(zero_init_last=zero_init_last)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Initialise as timm does, and restart identity gates."""
        super().init_weights(zero_init_last=zero_init_last)
        restart_identity(self)

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return 'head.fc' if name_only else self.get_submodule('head.fc')
