"""Where attention goes: the specification, and timm's blocks with it in place."""

from .residual import AttentionBasicBlock, AttentionBottleneck, attention_blocks
from .spec import AttentionSpec

__all__ = ['AttentionBasicBlock', 'AttentionBottleneck', 'AttentionSpec', 'attention_blocks']
