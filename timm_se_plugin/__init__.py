"""Channel attention for timm and MMDetection: Squeeze-and-Excitation and Selective Kernel by one flag.

Importing the package registers its models with timm.
"""

from . import models
from .files.version import __version__
from .placement import AttentionSpec, add_attention, fuse_for_inference, register_attention, remove_attention
from .sharing import push_to_hub

__all__ = [
    'AttentionSpec', '__version__', 'add_attention', 'fuse_for_inference', 'models', 'push_to_hub',
    'register_attention', 'remove_attention',
]

