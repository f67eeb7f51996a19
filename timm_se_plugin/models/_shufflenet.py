"""torchvision's ShuffleNetV2 as a timm model."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torchvision.models import ShuffleNetV2 as TorchvisionShuffleNetV2

from ._timm_methods import LayerByLayer

__all__ = ['ShuffleNetV2']

_STAGES = ('stage2', 'stage3', 'stage4')


class ShuffleNetV2(LayerByLayer, TorchvisionShuffleNetV2):
    """torchvision's ``ShuffleNetV2`` with timm's interface.

    Paper: ShuffleNet V2, https://arxiv.org/abs/1807.11164. Keys are torchvision's; attention has the keys
    ``branch2.se``, a Selective Kernel ``branch2.3``. Stages 1, 2 and 3 of the attention are the network's
    stages 2, 3 and 4.

    Shape: (N, in_chans, H, W) -> (N, num_classes).

    Args:
        layers: number of units of each of the three stages.
        channels: channels of the stem, of each stage, and of the last convolution.
        num_classes: 0 for no classifier.
        in_chans: channels of the images.
        global_pool: timm's name of the pooling.
        output_stride: 8, 16 or 32; below 32 dilation takes the place of strides.
        drop_rate: dropout before the classifier.
        device: device of the parameters.
        dtype: type of the parameters.

    Raises:
        ValueError: an invalid ``output_stride``.
    """

    attention_stages = 3  # add_attention reads it
    layer_names = ('conv1', 'maxpool', *_STAGES, 'conv5')
    checkpointed = _STAGES

    def __init__(
            self,
            layers: Sequence[int] = (4, 8, 4),
            channels: Sequence[int] = (24, 116, 232, 464, 1024),
            num_classes: int = 1000,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 32,
            drop_rate: float = 0.0,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride={output_stride!r} is not one of 8, 16, 32')
        super().__init__(list(layers), list(channels), num_classes=1)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.conv1[0] = nn.Conv2d(in_chans, channels[0], 3, stride=2, padding=1, bias=False)
        self.num_features = channels[-1]
        del self.fc
        self.global_pool: Any
        self.fc: Any
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.feature_info: list[dict[str, Any]] = [
            {'num_chs': channels[0], 'reduction': 2, 'module': 'conv1'},
            {'num_chs': channels[0], 'reduction': 4, 'module': 'maxpool'}]
        reduction, dilation = 4, 1
        for name, width in zip(_STAGES, channels[1:4], strict=True):
            units = getattr(self, name)
            if reduction < output_stride:
                reduction *= 2
            else:
                _dilate(units, dilation, 2 * dilation)
                dilation *= 2
            self.feature_info.append({'num_chs': width, 'reduction': reduction, 'module': name})
        self.to(device=device, dtype=dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's: parameters grouped by depth, from the stem to the last convolution."""
        return {
            'stem': r'^conv1',
            'blocks': r'^stage(\d+)' if coarse else [(r'^stage(\d+)\.(\d+)', None), (r'^conv5', (99999,))]}

    def forward_features(self, x: Tensor) -> Tensor:
        """Shape: (N, in_chans, H, W) -> (N, num_features, H / 32, W / 32)."""
        x = self.conv1(x)
        x = self.maxpool(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.stage2, self.stage3, self.stage4], x, flatten=True)
        else:
            x = self.stage2(x)
            x = self.stage3(x)
            x = self.stage4(x)
        return self.conv5(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify. Shape: (N, num_features, H, W) -> (N, num_classes)."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        x = self.forward_features(x)
        return self.forward_head(x)


def _dilate(units: nn.Sequential, first_dilation: int, dilation: int) -> None:
    """Replace a stage's stride by dilation of its 3x3 convolutions; the first unit gets `first_dilation`."""
    for index, unit in enumerate(units):
        for conv in unit.modules():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                size = first_dilation if index == 0 else dilation
                conv.stride, conv.dilation, conv.padding = (1, 1), (size, size), (size, size)
