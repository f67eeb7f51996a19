"""Where attention goes: the specification, timm's blocks with it in place, and its surgery on built networks."""

from .deployment import fuse_for_inference
from .residual import AttentionBasicBlock, AttentionBottleneck, attention_blocks
from .spec import AttentionSpec
from .surgery import add_attention, remove_attention

__all__ = [
    'AttentionBasicBlock', 'AttentionBottleneck', 'AttentionSpec', 'add_attention', 'attention_blocks',
    'fuse_for_inference', 'remove_attention',
]
