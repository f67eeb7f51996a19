"""Registered timm models."""

from . import plugin_resnet

__all__ = ['plugin_resnet']
