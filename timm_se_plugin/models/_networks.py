"""timm's ResNet class with attention where a specification says."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, to_ntuple
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ..layers import SqueezeExcite
from ..placement import AttentionSpec, attention_blocks

__all__ = ['AttentionResNet', 'LegacyResNet']


def checked_channels(x: Tensor, in_chans: int) -> Tensor:
    """Return x, or raise ValueError if it isn't a batch of images with `in_chans` channels."""
    if x.dim() != 4 or x.shape[1] != in_chans:
        raise ValueError(f'input of shape {list(x.shape)} is not allowed; allowed: (N, {in_chans}, H, W)')
    return x


torch.fx.wrap('checked_channels')  # a leaf under fx, where x has no shape to look at


class AttentionResNet(ResNet):
    """timm's ``ResNet``, with attention in its residual blocks.

    Args:
        block: timm's block class, or one for each stage.
        layers: number of blocks of each stage.
        attn: the attention; None leaves the network as timm builds it.
        **kwargs: as ``timm.models.resnet.ResNet``.
    """

    def __init__(
            self,
            block: type[nn.Module] | Sequence[type[nn.Module]],
            layers: Sequence[int],
            attn: AttentionSpec | None = None,
            **kwargs: Any,
    ) -> None:
        blocks = to_ntuple(len(layers))(block)
        super().__init__(attention_blocks(blocks, attn) if attn else blocks, layers, **kwargs)
        if attn and attn.init == 'identity':  # timm's initialisation has just given every convolution random weights
            for module in self.modules():
                if isinstance(module, SqueezeExcite):
                    module.init_identity()

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or features if there is no classifier. Shape: (N, in_chans, H, W) -> (N, num_classes)."""
        x = checked_channels(x, self.in_chans)
        x = self.forward_features(x)
        return self.forward_head(x)


class LegacyResNet(AttentionResNet):
    """ResNet whose computation is that of timm's ``legacy_*`` networks, the PyTorch port of the Caffe release.

    Its stem pools in ceil mode without padding, ``BasicBlock`` has a ReLU after its second normalisation, and
    ``stride_in_1x1`` puts a Bottleneck's stride into its first convolution.
    """

    def __init__(self, *args: Any, stride_in_1x1: bool = False, zero_init_last: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, zero_init_last=zero_init_last, **kwargs)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        for module in self.modules():
            if isinstance(module, BasicBlock):
                module.bn2 = _with_relu(module.bn2)
            elif isinstance(module, Bottleneck) and stride_in_1x1:
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _with_relu(norm: nn.BatchNorm2d) -> BatchNormAct2d:
    norm_act = BatchNormAct2d(norm.num_features, act_layer=nn.ReLU, device=norm.weight.device, dtype=norm.weight.dtype)
    norm_act.load_state_dict(norm.state_dict())
    return norm_act
