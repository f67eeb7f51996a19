"""Registered timm models."""

from . import plugin_families, plugin_inception, plugin_resnet

__all__ = ['plugin_families', 'plugin_inception', 'plugin_resnet']
