"""Attention layers, in torch alone."""

from .selective_kernel import SelectiveKernel
from .squeeze_excite import DoubleSigmoid, SqueezeExcite

__all__ = ['DoubleSigmoid', 'SelectiveKernel', 'SqueezeExcite']
