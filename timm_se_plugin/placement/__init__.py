"""Where attention goes: the specification, and timm's blocks with it in place."""

from .deployment import fuse_for_inference
from .residual import AttentionBasicBlock, AttentionBottleneck, attention_blocks
from .spec import AttentionSpec

__all__ = ['AttentionBasicBlock', 'AttentionBottleneck', 'AttentionSpec', 'attention_blocks', 'fuse_for_inference']
