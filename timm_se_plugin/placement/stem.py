"""The stem of timm's ResNets, run as the BatchNorm layers inside the blocks are."""

import torch
from timm.models import checkpoint_seq
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ..layers._bypass import has_hooks
from ..layers.norm_act import norm_act
from .residual import AttentionBlock, become

__all__ = ['WITH_FUSED_STEM', 'FusedStemResNet', 'run_stems']


class FusedStemResNet(ResNet):
    """timm's ``ResNet`` with a fused stem; keys are timm's.

    ``forward_intermediates`` and ``features_only`` call the modules of the stem one after the other, as in timm.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        """timm's, with the stem in fewer passes over its maps where this saves time."""
        if torch.jit.is_scripting():
            x = self.act1(self.bn1(self.conv1(x)))
        else:
            x = self._stem(x)
        x = self.maxpool(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3, self.layer4], x, flatten=True)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    @torch.jit.unused
    def _stem(self, x: Tensor) -> Tensor:
        is_deep = type(self.conv1) is nn.Sequential and not has_hooks(self.conv1)
        layers = [*(self.conv1 if is_deep else [self.conv1]), self.bn1, self.act1]
        if len(layers) % 3:
            return self.act1(self.bn1(self.conv1(x)))
        for conv, bn, act in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
            x = norm_act(conv(x), bn, act, conv)
        return x


# The class of a network with a fused stem for each class without one. Models of the package add theirs.
WITH_FUSED_STEM: dict[type[nn.Module], type[nn.Module]] = {ResNet: FusedStemResNet}


def run_stems(model: nn.Module) -> None:
    """Let the stem of each ResNet in a network run fused if one of its blocks does, and else as timm's."""
    plain = {fused: plain for plain, fused in WITH_FUSED_STEM.items()}
    for network in model.modules():
        cls = plain.get(type(network), type(network))
        if cls in WITH_FUSED_STEM:
            is_fused = any(isinstance(block, AttentionBlock) and block.fused for block in network.modules())
            become(network, WITH_FUSED_STEM[cls] if is_fused else cls)
