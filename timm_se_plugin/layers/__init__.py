"""Attention layers, in torch alone."""

from .bottleneck_attention import BottleneckAttention
from .concurrent_squeeze_excite import ConcurrentSqueezeExcite, SpatialSqueezeExcite
from .selective_kernel import SelectiveKernel
from .squeeze_excite import DoubleSigmoid, SqueezeExcite

__all__ = [
    'BottleneckAttention', 'ConcurrentSqueezeExcite', 'DoubleSigmoid', 'SelectiveKernel', 'SpatialSqueezeExcite',
    'SqueezeExcite',
]
