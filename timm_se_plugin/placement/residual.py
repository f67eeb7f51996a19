"""timm's residual blocks with attention at the places that the papers name."""

from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ..layers._bypass import has_hooks
from ..layers.kernels import has_kernels
from ..layers.norm_act import norm_act
from ..layers.residual_tail import can_fuse, residual_tail, why_not_fused
from .finding import restart_identity
from .spec import AttentionSpec

__all__ = [
    'AttentionBasicBlock', 'AttentionBottleneck', 'attend', 'attention_channels', 'detach', 'initialise_as_timm',
    'run_fused',
]


class AttentionBasicBlock(BasicBlock):
    """timm's ``BasicBlock`` with attention; keys are timm's, the attention is ``se``.

    :func:`attend` makes it of a block that timm built.

    Shape: (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride)).
    """

    integration: str
    fused: bool | str

    def module_by_module(self, x: Tensor) -> Tensor:
        """timm's block with the attention where Figure 5 of the SE paper has it."""
        shortcut = x
        if self.integration == 'pre':
            x = self.se(x)
        x = self.bn1(self.conv1(x))
        if self.integration == '3x3':
            x = self.se(x)
        x = self.aa(self.act1(self.drop_block(x)))
        x = self.bn2(self.conv2(x))
        if self.integration == 'standard':
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        if self.integration == 'identity':
            shortcut = self.se(shortcut)
        x += shortcut
        x = self.act2(x)
        if self.integration == 'post':
            x = self.se(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """The same in fewer passes over the maps."""
        if torch.jit.is_scripting():
            return self.module_by_module(x)
        return self._forward_fused(x)

    @torch.jit.unused
    def _forward_fused(self, x: Tensor) -> Tensor:
        if not self.fused:
            return self.module_by_module(x)
        shortcut = x
        x = self.se(x) if self.integration == 'pre' else x
        x = self.conv2(_middle(self, x, self.conv1, self.bn1, self.act1))
        return _tail(self, x, shortcut, self.conv2, None, self.bn2, self.act2)

    def zero_init_last(self) -> None:
        """As timm's, which its ``init_weights`` calls after it has drawn the weights: the identity starts anew too."""
        super().zero_init_last()
        restart_identity(self)


class AttentionBottleneck(Bottleneck):
    """timm's ``Bottleneck`` with attention; keys are timm's, the attention is ``se``.

    :func:`attend` makes it of a block that timm built.

    Shape: (N, inplanes, H, W) -> (N, 4 * planes, ceil(H / stride), ceil(W / stride)).
    """

    integration: str
    fused: bool | str

    def module_by_module(self, x: Tensor) -> Tensor:
        """timm's block with the attention where Figure 5 of the SE paper has it."""
        shortcut = x
        if self.integration == 'pre':
            x = self.se(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.integration == '3x3':
            x = self.se(x)
        x = self.aa(self.act2(self.drop_block(x)))
        x = self.bn3(self.conv3(x))
        if self.integration == 'standard':
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        if self.integration == 'identity':
            shortcut = self.se(shortcut)
        x += shortcut
        x = self.act3(x)
        if self.integration == 'post':
            x = self.se(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """The same in fewer passes over the maps."""
        if torch.jit.is_scripting():
            return self.module_by_module(x)
        return self._forward_fused(x)

    @torch.jit.unused
    def _forward_fused(self, x: Tensor) -> Tensor:
        if not self.fused:
            return self.module_by_module(x)
        shortcut = x
        x = self.se(x) if self.integration == 'pre' else x
        x = norm_act(self.conv1(x), self.bn1, self.act1, self.conv1)
        narrow = _middle(self, x, self.conv2, self.bn2, self.act2)
        return _tail(self, self.conv3(narrow), shortcut, self.conv3, narrow, self.bn3, self.act3)

    def zero_init_last(self) -> None:
        """As timm's, which its ``init_weights`` calls after it has drawn the weights: the identity starts anew too."""
        super().zero_init_last()
        restart_identity(self)


def _middle(block: Any, x: Tensor, conv: nn.Module, bn: nn.Module, act: nn.Module) -> Tensor:
    """The (first) 3x3 convolution of a block with what follows until the next convolution."""
    if block.integration == '3x3' or type(block.drop_block) is not nn.Identity:
        x = norm_act(conv(x), bn, None, conv)
        x = block.se(x) if block.integration == '3x3' else x
        return block.aa(act(block.drop_block(x)))
    return block.aa(norm_act(conv(x), bn, act, conv))


def _shortcut(downsample: nn.Module | None, x: Tensor) -> Tensor:
    """What is added: the input, or its projection, whose norm is computed like those inside the block."""
    if downsample is None:
        return x
    if type(downsample) is not nn.Sequential or has_hooks(downsample) or len(downsample) < 2:
        return downsample(x)
    *first, conv, bn = downsample
    for module in first:
        x = module(x)
    return norm_act(conv(x), bn, None, conv)


def _tail(
        block: Any, x: Tensor, shortcut: Tensor, conv: nn.Module, conv_input: Tensor | None, bn: nn.Module,
        act: nn.Module,
) -> Tensor:
    """What remains of a block after its last convolution; module by module where something stands in the way."""
    place, drop_path = block.integration, block.drop_path
    se = block.se if place == 'standard' else None
    shortcut = _shortcut(block.downsample, shortcut)
    # On a CPU, where nothing is multiplied, the modules keep as much for the backward pass and take less time.
    is_scaled = se is not None or drop_path is not None or place == 'identity' or has_kernels(x)
    if is_scaled and can_fuse(x, bn, se, drop_path, block.fused):
        gate = None
        if place == 'identity' and not why_not_fused(x, bn, block.se):  # the gate joins the addition
            gate = block.se.excite(block.se.squeeze(shortcut))
        elif place == 'identity':
            shortcut = block.se(shortcut)
        x = residual_tail(x, shortcut, bn, se, drop_path, act, shortcut_gate=gate, conv=conv, conv_input=conv_input)
    else:
        x = norm_act(x, bn, None, conv)
        x = x if se is None else se(x)
        x = x if drop_path is None else drop_path(x)
        x += block.se(shortcut) if place == 'identity' else shortcut
        x = act(x)
    return block.se(x) if place == 'post' else x


_WITH_ATTENTION: dict[type[nn.Module], type[nn.Module]] = {
    BasicBlock: AttentionBasicBlock,
    Bottleneck: AttentionBottleneck,
}


def attention_channels(block: Any, integration: str) -> int:
    """Channels of the map that a block's attention recalibrates.

    Args:
        block: timm's ``BasicBlock`` or ``Bottleneck``.
        integration: the place.
    """
    is_bottleneck = isinstance(block, Bottleneck)
    if integration == 'pre':
        return block.conv1.in_channels
    if integration == '3x3':
        return block.conv2.out_channels if is_bottleneck else block.conv1.out_channels
    return block.conv3.out_channels if is_bottleneck else block.conv2.out_channels


def initialise_as_timm(layer: nn.Module) -> None:
    """Draw the weights of a layer's convolutions as timm's ResNet draws those of every convolution."""
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    restart_identity(layer)


def attend(block: Any, attn: AttentionSpec, attention: nn.Module) -> None:
    """Give a residual block its attention."""
    _prepare(block, attention, attn.integration, attn.fused)


def run_fused(block: Any, fused: bool | str) -> None:
    """Give a residual block the fused path alone: one without attention, or with a Selective Kernel."""
    _prepare(block, nn.Identity(), 'none', fused)


def _prepare(block: Any, attention: nn.Module, integration: str, fused: bool | str) -> None:
    block.se, block.integration, block.fused = attention, integration, fused
    if type(block) in _WITH_ATTENTION:
        _become(block, _WITH_ATTENTION[type(block)])


def detach(block: Any) -> nn.Module:
    """Take a block's attention away, and return it; the block is timm's again."""
    attention: nn.Module = block.se
    del block.se, block.fused, block.integration
    block.se = None
    _become(block, next(plain for plain, ours in _WITH_ATTENTION.items() if isinstance(block, ours)))
    return attention


def _become(block: nn.Module, cls: type[nn.Module]) -> None:
    """Let a block run another class's forward.

    A new object in its place would be unknown to whoever holds the old one: a list that the network keeps beside its
    modules, a hook's handle, a feature extractor. torch's own parametrisations and FSDP2 change classes for the same
    reason.
    """
    block.__class__ = cls
