"""Shake-Shake (Gastaldi, arXiv 1705.07485)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from ._cifar_networks import CifarResNet, refuse

__all__ = ['ShakeShake', 'ShakeShakeBlock', 'ShakeShakeResNet']


def shake_shake(a: Tensor, b: Tensor, training: bool) -> Tensor:
    """The function of :class:`ShakeShake`."""
    if not training:
        return torch.lerp(b, a, 0.5)
    alpha = a.new_empty((a.shape[0], 1, 1, 1)).uniform_()
    beta = a.new_empty((a.shape[0], 1, 1, 1)).uniform_()
    return torch.lerp(b, a, beta) + ((alpha - beta) * (a - b)).detach()


torch.fx.wrap('shake_shake')  # a single node under fx, so that the graphs of training and evaluation have equal nodes


class ShakeShake(nn.Module):
    """Stochastic mix of two branches: ``alpha * a + (1 - alpha) * b``, and beta in the place of alpha in the gradient.

    alpha and beta are uniform in [0, 1), and drawn for each image at each call (the paper's "Shake-Shake-Image",
    section 2). In evaluation the mix is the mean.

    Shape: twice (N, C, H, W) -> (N, C, H, W).
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Mix the branches."""
        return shake_shake(a, b, self.training)


class ShakeShakeBranch(BasicBlock):
    """The residual branch of timm's ``BasicBlock`` alone, without addition and last activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride))."""
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.drop_block(x)
        x = self.act1(x)
        x = self.aa(x)
        return self.bn2(self.conv2(x))


class ShakeShakeShortcut(nn.Module):
    """Shortcut of two 1x1 convolutions, concatenated, and a norm.

    The first convolution reads the positions that the stride keeps, the second those one row and one column before.

    Shape: (N, C_in, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: nn.Module) -> None:
        super().__init__()
        like: Any = norm.weight
        factory: dict[str, Any] = {'bias': False, 'device': like.device, 'dtype': like.dtype}
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 1, **factory)
        self.conv2 = nn.Conv2d(in_channels, channels - channels // 2, 1, **factory)
        self.bn = norm
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')  # as timm's

    def forward(self, x: Tensor) -> Tensor:
        """Subsample, project and normalise."""
        shifted = F.pad(x, (1, -1, 1, -1))
        out = torch.cat([
            self.conv1(F.avg_pool2d(x, 1, self.stride)), self.conv2(F.avg_pool2d(shifted, 1, self.stride))], 1)
        return self.bn(out)


class ShakeShakeBlock(nn.Module):
    """Residual block of two branches, ReLU-conv-BN-ReLU-conv-BN each, mixed by :class:`ShakeShake`.

    The attention is between mix and addition; no activation follows the addition.

    Shape: (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride)).

    Args:
        inplanes: channels of the input.
        planes: channels of the output.
        stride: stride of each branch.
        downsample: the shortcut; None for the identity.
        act_layer: the activation.
        drop_path: stochastic depth, or None.
        **kwargs: options of both branches, as for ``timm.models.resnet.BasicBlock``.
    """

    expansion = 1

    def __init__(
            self,
            inplanes: int,
            planes: int,
            stride: int = 1,
            downsample: nn.Module | None = None,
            act_layer: type[nn.Module] = nn.ReLU,
            drop_path: nn.Module | None = None,
            **kwargs: Any,
    ) -> None:
        super().__init__()
        self.act = act_layer()  # not in place, since the shortcut needs the input
        self.branch1 = ShakeShakeBranch(inplanes, planes, stride, act_layer=act_layer, **kwargs)
        self.branch2 = ShakeShakeBranch(inplanes, planes, stride, act_layer=act_layer, **kwargs)
        self.mix = ShakeShake()
        self.se = nn.Identity()  # the place of the attention
        self.drop_path = nn.Identity() if drop_path is None else drop_path
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Mix the branches, recalibrate, and add the shortcut."""
        shortcut = x
        x = self.act(x)
        if self.downsample is not None:
            shortcut = self.downsample(x)
        x = self.mix(self.branch1(x), self.branch2(x))
        x = self.se(x)
        x = self.drop_path(x)
        return x + shortcut


class ShakeShakeResNet(CifarResNet):
    """Shake-Shake network: a stem without activation, blocks of two branches, and an activation before the pooling.

    Paper: "Shake-Shake regularization", https://arxiv.org/abs/1705.07485, section 2.
    """

    def __init__(self, block: type[nn.Module], layers: Sequence[int], **kwargs: Any) -> None:
        refuse(kwargs, ('avg_down', 'down_kernel_size', 'shortcut'), 'by Shake-Shake, which has a shortcut of its own')
        super().__init__(block, layers, shortcut='B', **kwargs)
        for first in self.first_blocks():
            if first.downsample is not None:
                conv, norm = first.downsample
                first.downsample = ShakeShakeShortcut(conv.in_channels, conv.out_channels, conv.stride[0], norm)
        act = type(self.get_submodule('act1'))
        self.act1 = nn.Identity()  # the blocks start with one
        self.layer4 = nn.Sequential(act())  # timm's forward calls it before the pooling
