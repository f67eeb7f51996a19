"""timm's ResNet class with attention where a specification says."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, to_ntuple
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ..placement import AttentionSpec, add_attention, attention_blocks
from ..placement.attention_layers import start_at_identity
from ..placement.sites import attention_modules
from ..placement.spec import ATTENTIONS

__all__ = ['AttentionResNet', 'LegacyResNet', 'checked_for_addition', 'with_attention']


def with_attention(model_cls: Callable[..., nn.Module], attn: AttentionSpec | None = None, **kwargs: Any) -> nn.Module:
    """A network of a timm class, with attention put into it."""
    model = model_cls(**kwargs)
    if attn:
        add_attention(model, attn)
    return model


def checked_for_addition(attn: AttentionSpec, network: str, selects_kernels: bool = False) -> AttentionSpec:
    """Return `attn`, or raise ValueError if it asks for attention elsewhere than at the end of the residual branch.

    Args:
        attn: the attention.
        network: what it is asked of, for the message.
        selects_kernels: whether Selective Kernels are allowed too.
    """
    if attn.attn.startswith('sk') and not selects_kernels:
        allowed = ', '.join(name for name in ATTENTIONS if not name.startswith('sk'))
        raise ValueError(f'attn={attn.attn!r} is not allowed in {network}; allowed: {allowed}')
    if attn.integration != 'standard':
        raise ValueError(f'attn_integration={attn.integration!r} is not allowed in {network}; allowed: standard')
    if attn.fused is True and attn.attn != 'sk':
        raise ValueError(f"attn_fused=True is not allowed in {network}, whose attention follows no BatchNorm; "
                         "allowed: auto, False")
    return attn


def restart_identity(model: nn.Module) -> None:
    """Let the gates that started at 1 do so again."""
    for attention in attention_modules(model).values():
        if getattr(attention, 'init', 'default') == 'identity':
            start_at_identity(attention)


def checked_channels(x: Tensor, channels: int) -> Tensor:
    """Return x, or raise ValueError if it isn't a batch of images with so many channels."""
    if not torch.jit.is_tracing() and (x.dim() != 4 or x.shape[1] != channels):
        raise ValueError(f'input of shape {list(x.shape)} is not allowed; allowed: (N, {channels}, H, W)')
    return x


torch.fx.wrap('checked_channels')  # a leaf under fx, where x has no shape to look at


class StemConv2d(nn.Conv2d):
    """A network's first convolution, which every way through it shares, with one clear error for a wrong input."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images. Shape: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""
        return self._conv_forward(checked_channels(x, self.in_channels), self.weight, self.bias)


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
        stem = self.conv1 if isinstance(self.conv1, nn.Conv2d) else self.conv1[0]
        stem.__class__ = StemConv2d  # the same parameters and keys

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Initialize as timm does, which gives every convolution random weights, and gates that start at 1 as such."""
        super().init_weights(zero_init_last=zero_init_last)
        restart_identity(self)


class LegacyResNet(AttentionResNet):
    """ResNet whose computation is that of timm's ``legacy_*`` networks, the PyTorch port of the Caffe release.

    Its stem pools in ceil mode without padding, ``BasicBlock`` has an activation after its second BatchNorm, and
    ``stride_in_1x1`` puts a Bottleneck's stride into its first convolution.
    """

    def __init__(
            self,
            block: type[nn.Module] | Sequence[type[nn.Module]],
            layers: Sequence[int],
            attn: AttentionSpec | None = None,
            stride_in_1x1: bool = False,
            zero_init_last: bool = False,
            **kwargs: Any,
    ) -> None:
        if attn and stride_in_1x1 and any(map(attn.selects_kernels, range(1, 5))):
            raise ValueError(
                f'attn={attn.attn!r} is not allowed with stride_in_1x1=True; allowed: attention without kernels')
        super().__init__(block, layers, attn, zero_init_last=zero_init_last, **kwargs)
        if type(self.get_submodule('maxpool')) is nn.MaxPool2d:  # not what replace_stem_pool or aa_layer put there
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        for module in self.modules():
            if isinstance(module, BasicBlock):
                module.bn2 = _with_act(module.bn2, type(module.act2))
            elif isinstance(module, Bottleneck) and stride_in_1x1:
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _with_act(norm: nn.Module, act_layer: type[nn.Module]) -> BatchNormAct2d:
    if type(norm) is not nn.BatchNorm2d:
        raise ValueError(f'norm_layer={type(norm).__name__} is not allowed in a legacy network; allowed: BatchNorm2d')
    like = next(norm.parameters(), torch.empty(0))
    norm_act = BatchNormAct2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, act_layer=act_layer,
        device=like.device, dtype=like.dtype)
    norm_act.load_state_dict(norm.state_dict())
    return norm_act
