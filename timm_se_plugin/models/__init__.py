"""Registered timm models."""

from . import plugin_cifar, plugin_resnet

__all__ = ['plugin_cifar', 'plugin_resnet']
