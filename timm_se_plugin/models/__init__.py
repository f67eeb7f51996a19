"""The models that the package registers with timm."""

from . import plugin_cifar, plugin_families, plugin_inception, plugin_resnet, plugin_shufflenet

__all__ = ['plugin_cifar', 'plugin_families', 'plugin_inception', 'plugin_resnet', 'plugin_shufflenet']
