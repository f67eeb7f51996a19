"""timm's residual blocks with attention at the places of the SE paper's Figure 5."""

from collections.abc import Callable
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ..layers._bypass import has_hooks
from ..layers.concurrent_squeeze_excite import SpatialSqueezeExcite
from ..layers.kernels import has_kernels
from ..layers.norm_act import norm_act
from ..layers.residual_tail import (
    add_shortcut,
    can_fuse,
    can_gate_weights,
    gated_conv,
    is_small,
    recalibrate,
    residual_tail,
    why_not_fused,
)
from .finding import restart_identity

__all__ = [
    'AttentionBasicBlock', 'AttentionBlock', 'AttentionBottleneck', 'attend', 'attention_channels', 'become', 'detach',
    'initialise_as_timm', 'run_fused', 'start_norms', 'starts_closed',
]


class AttentionBlock:
    """What timm's two residual blocks with attention have in common; the next base class is timm's."""

    integration: str
    fused: bool | str
    module_by_module: Callable[[Tensor], Tensor]
    _forward_fused: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """The result of ``module_by_module``, in fewer passes over the maps where this saves time."""
        if not torch.jit.is_scripting():
            if self.fused and not (self.fused == 'auto' and is_small(x)):
                return self._forward_fused(x)
        return self.module_by_module(x)

    def zero_init_last(self) -> None:
        """As timm's, and restart identity gates: timm's ``init_weights`` calls this after drawing all weights."""
        block: Any = self
        if self.integration != 'standard' or not starts_closed(block.se):
            super().zero_init_last()  # type: ignore[misc]
        restart_identity(block)


class AttentionBasicBlock(AttentionBlock, BasicBlock):
    """timm's ``BasicBlock`` with attention; keys are timm's, the attention is ``se``.

    :func:`attend` turns a block that timm built into one of this class.

    Shape: (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride)).
    """

    def module_by_module(self, x: Tensor) -> Tensor:
        """timm's forward with the attention where Figure 5 of the SE paper has it."""
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

    @torch.jit.unused
    def _forward_fused(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.se(x) if self.integration == 'pre' else x
        x = self.conv2(_middle(self, x, self.conv1, self.bn1, self.act1))
        return _tail(self, x, shortcut, self.conv2, None, self.bn2, self.act2)


class AttentionBottleneck(AttentionBlock, Bottleneck):
    """timm's ``Bottleneck`` with attention; keys are timm's, the attention is ``se``.

    :func:`attend` turns a block that timm built into one of this class.

    Shape: (N, inplanes, H, W) -> (N, 4 * planes, ceil(H / stride), ceil(W / stride)).
    """

    def module_by_module(self, x: Tensor) -> Tensor:
        """timm's forward with the attention where Figure 5 of the SE paper has it."""
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

    @torch.jit.unused
    def _forward_fused(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.se(x) if self.integration == 'pre' else x
        x = norm_act(self.conv1(x), self.bn1, self.act1, self.conv1)
        narrow = _middle(self, x, self.conv2, self.bn2, self.act2)
        if self.integration == 'standard' and can_gate_weights(
                narrow, self.conv3, self.bn3, self.se, self.fused):
            x = gated_conv(narrow, self.conv3, self.bn3, self.se)
            x = x if self.drop_path is None else self.drop_path(x)
            return add_shortcut(x, _shortcut(self.downsample, shortcut), self.act3)
        return _tail(self, self.conv3(narrow), shortcut, self.conv3, narrow, self.bn3, self.act3)


def _middle(block: Any, x: Tensor, conv: nn.Module, bn: nn.Module, act: nn.Module) -> Tensor:
    """The (first) 3x3 convolution of a block and the layers until the next convolution."""
    if block.integration == '3x3' or type(block.drop_block) is not nn.Identity or has_hooks(block.drop_block):
        x = norm_act(conv(x), bn, None, conv)
        x = block.se(x) if block.integration == '3x3' else x
        return block.aa(act(block.drop_block(x)))
    return block.aa(norm_act(conv(x), bn, act, conv))


def _shortcut(downsample: nn.Module | None, x: Tensor) -> Tensor:
    """The shortcut: x, or its projection, whose norm runs by :func:`norm_act` like those inside the block."""
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
    """The rest of a block after its last convolution, fused where possible, else module by module."""
    integration, drop_path = block.integration, block.drop_path
    se = block.se if integration == 'standard' else None
    shortcut = _shortcut(block.downsample, shortcut)
    # On a CPU, if nothing is multiplied, the modules take less time and keep as much for the backward pass.
    is_scaled = se is not None or drop_path is not None or integration == 'identity' or has_kernels(x)
    if is_scaled and can_fuse(x, bn, se, drop_path, block.fused):
        gate = None
        if integration == 'identity' and not why_not_fused(x, bn, block.se):  # the gate joins the addition
            gate = block.se.excite(block.se.squeeze(shortcut))
        elif integration == 'identity':
            shortcut = block.se(shortcut)
        x = residual_tail(x, shortcut, bn, se, drop_path, act, shortcut_gate=gate, conv=conv, conv_input=conv_input)
    else:
        x = norm_act(x, bn, None, conv)
        x = x if se is None else recalibrate(x, se, conv, bn)
        x = x if drop_path is None else drop_path(x)
        x = add_shortcut(x, block.se(shortcut) if integration == 'identity' else shortcut, act)
    return block.se(x) if integration == 'post' else x


_WITH_ATTENTION: dict[type[nn.Module], type[nn.Module]] = {
    BasicBlock: AttentionBasicBlock,
    Bottleneck: AttentionBottleneck,
}


def attention_channels(block: Any, integration: str) -> int:
    """Channels of the map that a block's attention recalibrates.

    Args:
        block: timm's ``BasicBlock`` or ``Bottleneck``.
        integration: where the attention is, one of ``INTEGRATIONS``.
    """
    is_bottleneck = isinstance(block, Bottleneck)
    if integration == 'pre':
        return block.conv1.in_channels
    if integration == '3x3':
        return block.conv2.out_channels if is_bottleneck else block.conv1.out_channels
    return block.conv3.out_channels if is_bottleneck else block.conv2.out_channels


def initialise_as_timm(layer: nn.Module) -> None:
    """Draw the weights of a layer's convolutions as timm's ResNet does, except those of spatial SE.

    timm's ``fan_out`` would give the weights of its one output a deviation of 1.4 for any number of channels, and most
    gates would begin near 0 or 1.
    """
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    for module in layer.modules():
        if isinstance(module, SpatialSqueezeExcite):
            nn.init.kaiming_normal_(module.conv.weight, mode='fan_in', nonlinearity='relu')
    restart_identity(layer)


def starts_closed(layer: nn.Module) -> bool:
    """Whether the gates of a layer are 0 where its input is 0: tanh or ReLU after layers without a bias.

    After a last norm that starts at 0, such a layer would never learn, nor would the norm: neither factor gives the
    other a gradient.
    """
    gates = [module for name, module in layer.named_modules() if name.rpartition('.')[2] == 'gate']
    linear = [module for module in layer.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)]
    return bool(gates) and all(module.bias is None for module in linear) and all(map(_keeps_zero, gates))


def _keeps_zero(gate: nn.Module) -> bool:
    """Whether the last function of a gate, which may have layers before it, is known to make 0 of 0."""
    *_, last = gate.modules()
    if any(True for _ in last.parameters()):
        return False
    try:
        return not last(torch.zeros(1, device='cpu')).any()
    except Exception:  # no function of single numbers, such as a softmax; a registered one may raise anything
        return False


def start_norms(block: nn.Module) -> None:
    """Set the weights of norms in a block to 1 where all of them are 0."""
    for norm in block.modules():
        weight = getattr(norm, 'weight', None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 1 and not weight.is_meta and not weight.any():
            nn.init.ones_(weight)


def attend(block: Any, attention: nn.Module, integration: str, fused: bool | str) -> None:
    """Give timm's ``BasicBlock`` or ``Bottleneck`` its attention, at one of ``INTEGRATIONS``."""
    block.se, block.integration, block.fused = attention, integration, fused
    if type(block) in _WITH_ATTENTION:
        become(block, _WITH_ATTENTION[type(block)])


def run_fused(block: Any, fused: bool | str) -> None:
    """Let a residual block without ``se``, which may have a Selective Kernel, run by the fused path."""
    attend(block, nn.Identity(), 'none', fused)


def detach(block: Any) -> nn.Module:
    """Remove and return a block's attention; the block has timm's class again."""
    attention: nn.Module = block.se
    del block.se, block.fused, block.integration
    block.se = None
    become(block, next(plain for plain, attentive in _WITH_ATTENTION.items() if isinstance(block, attentive)))
    return attention


def become(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of a block or a network, and with it the forward.

    Code that holds the module would not know a new object in its place: a list that the network keeps beside its
    modules, a hook's handle, a feature extractor. torch's parametrisations and FSDP2 change classes for the same
    reason.
    """
    module.__class__ = cls
