"""Registered timm models."""

from . import plugin_cifar, plugin_families, plugin_inception, plugin_resnet

__all__ = ['plugin_cifar', 'plugin_families', 'plugin_inception', 'plugin_resnet']
