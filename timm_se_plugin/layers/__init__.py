"""Attention layers, in torch alone."""

from .squeeze_excite import DoubleSigmoid, SqueezeExcite

__all__ = ['DoubleSigmoid', 'SqueezeExcite']
