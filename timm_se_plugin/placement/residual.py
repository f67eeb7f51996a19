"""timm's residual blocks with attention at the places the papers name."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from timm.layers import create_aa
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ..layers import SelectiveKernel
from ..layers.in_place_norm import normalize
from ..layers.residual_tail import can_fuse, residual_tail
from .spec import AttentionSpec

__all__ = ['AttentionBasicBlock', 'AttentionBottleneck', 'attend', 'attention_blocks', 'attention_channels', 'detach']


class AttentionBasicBlock(BasicBlock):
    """timm's ``BasicBlock`` with attention; keys are timm's, the attention is ``se``.

    Shape: (N, inplanes, H, W) -> (N, planes, ceil(H / stride), ceil(W / stride)).

    Args:
        *args: as ``timm.models.resnet.BasicBlock``.
        attn: the attention and its place.
        stage: which stage the block is in, from 1.
        **kwargs: as ``timm.models.resnet.BasicBlock``.
    """

    def __init__(self, *args: Any, attn: AttentionSpec, stage: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fused = attn.fused
        self.integration = attn.integration if attn.recalibrates(stage) else 'none'
        self.se = nn.Identity() if self.integration == 'none' else attn.create(
            attention_channels(self, attn), kwargs.get('device'), kwargs.get('dtype'))
        if attn.selects_kernels(stage):
            conv: Any = self.conv1
            self.conv1: nn.Module = attn.create_selective_kernel(conv, stride=self.stride, **_branch_layers(kwargs))
            self.bn1 = self.drop_block = self.act1 = self.aa = nn.Identity()  # every branch has its own

    def forward(self, x: Tensor) -> Tensor:
        """As timm's, with the attention at its place."""
        shortcut = x
        if self.integration == 'pre':
            x = self.se(x)

        x = self.conv1(x)
        x = self.bn1(x) if torch.jit.is_scripting() else _normalize(x, self, self.bn1, self.conv1)
        if self.integration == '3x3':
            x = self.se(x)
        x = self.drop_block(x)
        x = self.act1(x)
        x = self.aa(x)

        x = self.conv2(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        if not torch.jit.is_scripting():
            out = _fused_tail(x, shortcut, self, self.conv2, None, self.bn2, self.act2)
            if out is not None:
                return out

        x = self.bn2(x) if torch.jit.is_scripting() else _normalize(x, self, self.bn2, self.conv2)
        if self.integration == 'standard':
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.integration == 'identity':
            shortcut = self.se(shortcut)
        x += shortcut
        x = self.act2(x)
        if self.integration == 'post':
            x = self.se(x)
        return x


class AttentionBottleneck(Bottleneck):
    """timm's ``Bottleneck`` with attention; keys are timm's, the attention is ``se``.

    Shape: (N, inplanes, H, W) -> (N, 4 * planes, ceil(H / stride), ceil(W / stride)).

    Args:
        *args: as ``timm.models.resnet.Bottleneck``.
        attn: the attention and its place.
        stage: which stage the block is in, from 1.
        **kwargs: as ``timm.models.resnet.Bottleneck``.
    """

    def __init__(self, *args: Any, attn: AttentionSpec, stage: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fused = attn.fused
        self.integration = attn.integration if attn.recalibrates(stage) else 'none'
        self.se = nn.Identity() if self.integration == 'none' else attn.create(
            attention_channels(self, attn), kwargs.get('device'), kwargs.get('dtype'))
        if attn.selects_kernels(stage):
            conv: Any = self.conv2
            self.conv2: nn.Module = attn.create_selective_kernel(conv, stride=self.stride, **_branch_layers(kwargs))
            self.bn2 = self.drop_block = self.act2 = self.aa = nn.Identity()  # every branch has its own

    def forward(self, x: Tensor) -> Tensor:
        """As timm's, with the attention at its place."""
        shortcut = x
        if self.integration == 'pre':
            x = self.se(x)

        x = self.conv1(x)
        x = self.bn1(x) if torch.jit.is_scripting() else _normalize(x, self, self.bn1, self.conv1)
        x = self.act1(x)

        x = self.conv2(x)
        x = self.bn2(x) if torch.jit.is_scripting() else _normalize(x, self, self.bn2, self.conv2)
        if self.integration == '3x3':
            x = self.se(x)
        x = self.drop_block(x)
        x = self.act2(x)
        x = self.aa(x)

        narrow = x
        x = self.conv3(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        if not torch.jit.is_scripting():
            out = _fused_tail(x, shortcut, self, self.conv3, narrow, self.bn3, self.act3)
            if out is not None:
                return out

        x = self.bn3(x) if torch.jit.is_scripting() else _normalize(x, self, self.bn3, self.conv3)
        if self.integration == 'standard':
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.integration == 'identity':
            shortcut = self.se(shortcut)
        x += shortcut
        x = self.act3(x)
        if self.integration == 'post':
            x = self.se(x)
        return x


def attention_channels(block: Any, attn: AttentionSpec) -> int:
    """Channels where a block's attention sits.

    Raises:
        ValueError: a class of block that is neither timm's nor the plugin's.
    """
    if type(block) not in _WITH_ATTENTION and not isinstance(block, tuple(_WITH_ATTENTION.values())):
        raise ValueError(f'a {type(block).__name__} is not allowed; allowed: BasicBlock, Bottleneck')
    is_bottleneck = isinstance(block, Bottleneck)
    if attn.integration == 'pre':
        return block.conv1.in_channels
    if attn.integration == '3x3':
        return block.conv2.out_channels if is_bottleneck else block.conv1.out_channels
    return block.conv3.out_channels if is_bottleneck else block.conv2.out_channels


def _branch_layers(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What timm's ResNet gives a block for its 3x3 convolution, as SelectiveKernel takes it."""
    aa_layer = kwargs.get('aa_layer')
    return {
        'act_layer': kwargs.get('act_layer', nn.ReLU), 'norm_layer': kwargs.get('norm_layer', nn.BatchNorm2d),
        'aa_layer': aa_layer and partial(create_aa, aa_layer), 'drop_layer': kwargs.get('drop_block'),
        'device': kwargs.get('device'), 'dtype': kwargs.get('dtype')}


def _normalize(x: Tensor, block: Any, bn: nn.Module, conv: nn.Module) -> Tensor:
    """The norm after a convolution; with ``attn_fused=False`` the modules run as they are."""
    return normalize(x, bn, conv) if block.fused else bn(x)


def _fused_tail(
        x: Tensor,
        shortcut: Tensor,
        block: Any,
        conv: nn.Module,
        conv_input: Tensor | None,
        bn: nn.Module,
        act: nn.Module,
) -> Tensor | None:
    """What remains of a block after its last convolution, in few passes; None where it has to go module by module."""
    se = block.se if block.integration == 'standard' else None
    if se is None and block.drop_path is None and block.integration != 'identity':
        return None  # nothing is multiplied: the modules keep as much and take less time
    if not can_fuse(x, bn, se, block.drop_path, block.fused):
        return None
    gate = None
    if block.integration == 'identity':
        if can_fuse(x, bn, block.se):  # the gate joins the addition
            gate = block.se.excite(block.se.squeeze(shortcut))
        else:
            shortcut = block.se(shortcut)
    out = residual_tail(x, shortcut, bn, se, block.drop_path, act, shortcut_gate=gate, conv=conv, conv_input=conv_input)
    return block.se(out) if block.integration == 'post' else out


def attention_blocks(
        blocks: Iterable[type[nn.Module]],
        attn: AttentionSpec,
) -> tuple[Callable[..., nn.Module], ...]:
    """Block constructor of each stage, for the ``block`` argument of timm's ``ResNet``.

    Args:
        blocks: the block class of each stage: timm's ``BasicBlock`` or ``Bottleneck``, or one that takes ``attn`` and
            ``stage`` itself.
        attn: the attention; a stage that it does not name keeps timm's block.

    Raises:
        ValueError: what is no class of block, as a word from a config.json; ``sites``, which name modules of a network
            that is built.
    """
    if attn.sites is not None:
        raise ValueError(
            f'sites={attn.sites!r} is not allowed before the network is built; allowed: add_attention afterwards')
    blocks = tuple(blocks)
    for block in blocks:
        if not (isinstance(block, type) and issubclass(block, nn.Module)):
            raise ValueError(f'block={block!r} is not allowed; allowed: a class of block, as timm\'s Bottleneck')
    return tuple(
        _constructor(_WITH_ATTENTION.get(block, block), attn, stage)
        if attn.recalibrates(stage) or attn.selects_kernels(stage) else block
        for stage, block in enumerate(blocks, start=1))


_WITH_ATTENTION: dict[type[nn.Module], type[nn.Module]] = {
    BasicBlock: AttentionBasicBlock,
    Bottleneck: AttentionBottleneck,
}


def attend(block: Any, attn: AttentionSpec, attention: nn.Module) -> None:
    """Give a block that is built its attention; it becomes what :func:`attention_blocks` builds."""
    block.se = attention
    block.fused, block.integration = attn.fused, attn.integration
    block.__class__ = _WITH_ATTENTION.get(type(block), type(block))


def detach(block: Any) -> nn.Module:
    """Take a block's attention away, and return it; the block is timm's again, or keeps its Selective Kernel."""
    attention: nn.Module = block.se
    plain = {ours: theirs for theirs, ours in _WITH_ATTENTION.items()}.get(type(block))
    if plain is None or any(isinstance(child, SelectiveKernel) for child in block.children()):
        block.se, block.integration = nn.Identity(), 'none'
        return attention
    del block.se
    block.se = None
    del block.fused, block.integration
    block.__class__ = plain
    return attention


def _constructor(block: Any, attn: AttentionSpec, stage: int) -> Callable[..., nn.Module]:
    constructor: Any = partial(block, attn=attn, stage=stage)
    constructor.expansion = block.expansion  # timm reads it before it builds
    return constructor
