"""Channel attention for timm and MMDetection: Squeeze-and-Excitation and Selective Kernel by one flag.

Importing the package registers its models with timm.
"""

from . import models
from .hub import push_to_hub
from .placement import AttentionSpec, fuse_for_inference

__all__ = ['AttentionSpec', '__version__', 'fuse_for_inference', 'models', 'push_to_hub']

__version__ = '0.1.0'
