"""Where attention goes: the specification, what is known of each attention and family, and surgery on networks."""

from .attentions import ATTENTIONS, Attention, register_attention, start_at_identity
from .deployment import fuse_for_inference
from .finding import attention_modules, counted_attention
from .residual import AttentionBasicBlock, AttentionBottleneck
from .spec import AttentionSpec
from .surgery import add_attention, place_attention, remove_attention

__all__ = [
    'ATTENTIONS', 'Attention', 'AttentionBasicBlock', 'AttentionBottleneck', 'AttentionSpec', 'add_attention',
    'attention_modules', 'counted_attention', 'fuse_for_inference', 'place_attention', 'register_attention',
    'remove_attention', 'start_at_identity',
]
