"""Residual networks for 32x32 images."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models._features import feature_take_indices  # private: timm exports it nowhere
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ..placement.stem import WITH_FUSED_STEM, FusedStemResNet

__all__ = ['CifarLevels', 'CifarResNet', 'PaddedShortcut', 'as_timm_counts', 'keep_size_in_stem', 'refuse']

# timm's constructor assumes a stem that divides the size by 4, and these stems keep the size. From 8 on no stride is
# replaced by dilation.
_OUTPUT_STRIDES = {2: 8, 4: 16, 8: 32, 16: 32, 32: 32}


def as_timm_counts(output_stride: int) -> int:
    """The ``output_stride`` that timm's constructor needs for a stem of stride 1."""
    if output_stride not in _OUTPUT_STRIDES:
        raise ValueError(f'output_stride={output_stride!r} is not one of 2, 4, 8, 16, 32')
    return _OUTPUT_STRIDES[output_stride]


def keep_size_in_stem(feature_info: list[dict[str, Any]]) -> None:
    """Divide the reductions that timm states by 4, the stride of its stem."""
    for info in feature_info:
        info['reduction'] = max(1, info['reduction'] // 4)


def refuse(kwargs: dict[str, Any], names: Sequence[str], why: str) -> None:
    """Raise ValueError for options that would do nothing."""
    for name in names:
        if name in kwargs:
            raise ValueError(f'{name}={kwargs[name]!r} has no effect in a CIFAR network {why}; leave it out')


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: every stride-th position, and zeros in the new channels.

    Paper: "Deep Residual Learning", https://arxiv.org/abs/1512.03385, section 3.3, option A.

    Shape: (N, C, H, W) -> (N, C + new_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        if self.stride > 1:
            x = F.avg_pool2d(x, 1, self.stride)  # over windows of one position
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f'stride={self.stride}, new_channels={self.new_channels}'


class CifarLevels(nn.Module):
    """timm's feature extraction for a stem and any number of stages; timm's networks have five levels."""

    __jit_unused_properties__ = ['attention_stages']  # noqa: RUF012  (TorchScript compiles all other properties)

    @property
    def attention_stages(self) -> int:
        """Number of stages that may carry attention, for ``add_attention``."""
        levels: Any = self.feature_info
        return len(levels) - 1

    def forward_intermediates(
            self, x: Tensor, indices: int | list[int] | None = None, *args: Any, **kwargs: Any,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As timm's, with indices into the levels of this network."""
        levels: Any = self.feature_info
        taken, _ = feature_take_indices(len(levels), indices)
        return super().forward_intermediates(x, taken, *args, **kwargs)  # type: ignore[misc]  # timm's class is next

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """As timm's, with indices into the levels of this network."""
        levels: Any = self.feature_info
        last = len(levels) - 1
        taken, max_index = feature_take_indices(last + 1, indices)
        # timm removes the head unless the last of five levels is kept.
        super().prune_intermediate_layers(  # type: ignore[misc]
            [*taken, 4] if max_index == last else taken, prune_norm, prune_head)
        return taken


class CifarResNet(CifarLevels, ResNet):
    """ResNet for 32x32 images: a 3x3 stem that keeps the size, no pooling, and as many stages as `layers` has numbers.

    Papers: "Deep Residual Learning", https://arxiv.org/abs/1512.03385, section 4.2, and ResNeXt,
    https://arxiv.org/abs/1611.05431, section 5.2, both of three stages. Keys are timm's. The feature
    levels are the stem and the stages, at strides 1, 1, 2 and 4 (and 8).

    Args:
        block: timm's block class, or one for each stage.
        layers: number of blocks of each stage.
        channels: ``planes`` of each stage.
        in_chans: channels of the images.
        stem_width: channels of the stem, an even number.
        shortcut: for blocks that change size or width: ``'A'`` without parameters, ``'B'`` a 1x1 convolution and norm.
        output_stride: 2, or 4 and more; below 4 dilation takes the place of strides.
        **kwargs: as ``timm.models.resnet.ResNet``, except options of the stem.

    Raises:
        ValueError: an invalid ``shortcut``, ``output_stride`` or ``stem_width``, an option of timm's stem, or an option
            of projections with ``shortcut='A'``.
    """

    def __init__(
            self,
            block: type[nn.Module] | Sequence[type[nn.Module]],
            layers: Sequence[int],
            channels: Sequence[int] = (16, 32, 64),
            in_chans: int = 3,
            stem_width: int = 16,
            shortcut: str = 'A',
            output_stride: int = 32,
            **kwargs: Any,
    ) -> None:
        if shortcut not in ('A', 'B'):
            raise ValueError(f'shortcut={shortcut!r} is not one of A, B')
        if stem_width < 2 or stem_width % 2:
            raise ValueError(f'stem_width={stem_width!r} is not a positive even number')
        refuse(kwargs, ('stem_type', 'replace_stem_pool'), 'whose stem is one 3x3 convolution')
        if shortcut == 'A':
            refuse(kwargs, ('avg_down', 'down_kernel_size'), "with shortcut='A'")
        # Only timm's deep stem has a free width; one convolution replaces it below.
        super().__init__(
            block, layers, channels=channels, in_chans=in_chans, output_stride=as_timm_counts(output_stride),
            stem_type='deep', stem_width=stem_width // 2, **kwargs)
        levels: Any = self.feature_info
        keep_size_in_stem(levels)
        self.conv1 = nn.Conv2d(
            in_chans, stem_width, 3, padding=1, bias=False, device=kwargs.get('device'), dtype=kwargs.get('dtype'))
        nn.init.kaiming_normal_(self.conv1.weight, mode='fan_out', nonlinearity='relu')
        self.maxpool = nn.Identity()
        for index in range(len(levels), 5):
            self.add_module(f'layer{index}', nn.Sequential())  # timm's forward calls four stages
        if shortcut == 'A':
            for first in self.first_blocks():
                if first.downsample is not None:
                    conv = first.downsample[0]
                    first.downsample = PaddedShortcut(conv.stride[0], conv.out_channels - conv.in_channels)

    @torch.jit.ignore
    def first_blocks(self) -> list[Any]:
        """The first block of each stage."""
        levels: Any = self.feature_info
        return [self.get_submodule(f'{info["module"]}.0') for info in levels[1:]]


class FusedStemCifarResNet(FusedStemResNet, CifarResNet):
    """A ``CifarResNet`` with a fused stem."""


WITH_FUSED_STEM[CifarResNet] = FusedStemCifarResNet
