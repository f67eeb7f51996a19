"""timm's pre-activation blocks with attention."""

from timm.models.resnetv2 import PreActBasic, PreActBottleneck
from torch import Tensor

from .spec import ATTENTIONS, AttentionSpec

__all__ = ['AttentionPreActBasic', 'AttentionPreActBottleneck', 'attend', 'checked_for_addition']


class AttentionPreActBasic(PreActBasic):
    """timm's ``PreActBasic`` with attention on the residual branch; keys are timm's, the attention is ``se``."""

    def forward(self, x: Tensor) -> Tensor:
        """As timm's, with the attention before the addition."""
        x_preact = self.norm1(x)
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x_preact)
        x = self.conv1(x_preact)
        x = self.conv2(self.norm2(x))
        x = self.se(x)
        x = self.drop_path(x)
        return x + shortcut


class AttentionPreActBottleneck(PreActBottleneck):
    """timm's ``PreActBottleneck`` with attention on the residual branch; keys are timm's, the attention is ``se``."""

    def forward(self, x: Tensor) -> Tensor:
        """As timm's, with the attention before the addition."""
        x_preact = self.norm1(x)
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x_preact)
        x = self.conv1(x_preact)
        x = self.conv2(self.norm2(x))
        x = self.conv3(self.norm3(x))
        x = self.se(x)
        x = self.drop_path(x)
        return x + shortcut


def attend(block: PreActBasic | PreActBottleneck, attn: AttentionSpec) -> None:
    """Give attention to a block that timm has built: its ResNetV2 has no choice of block."""
    conv = block.conv3 if isinstance(block, PreActBottleneck) else block.conv2
    block.se = attn.create(conv.out_channels, conv.weight.device, conv.weight.dtype)
    block.__class__ = AttentionPreActBottleneck if isinstance(block, PreActBottleneck) else AttentionPreActBasic


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
