"""The costs of networks that the papers publish."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ['PUBLISHED', 'PublishedCost']


@dataclass(frozen=True)
class PublishedCost:
    """A row of a paper's table.

    Args:
        network: the paper's name of the network.
        source: the paper and its table.
        model: the plugin's name of the network.
        parameters: millions of parameters; None where the paper has no number.
        gmacs: 10^9 multiply-accumulates, which the papers call FLOPs; None where the paper has no number.
        options: keywords of ``timm.create_model`` for the network.
        size: height and width of the image in pixels.
    """

    network: str
    source: str
    model: str
    parameters: float | None
    gmacs: float | None
    options: dict[str, Any] = field(default_factory=dict)
    size: int = 224


def _pair(
        network: str, base: str, gmacs: float, se_gmacs: float,
        parameters: float | None = None, se_parameters: float | None = None,
) -> list[PublishedCost]:
    return [
        PublishedCost(network, 'SE, Table 2', f'{base}_plugin', parameters, gmacs, {'attn': 'none'}),
        PublishedCost(f'SE-{network}', 'SE, Table 2', f'{base}_plugin', se_parameters, se_gmacs, {'attn': 'se'})]


# The SE paper is arXiv 1709.01507v4; parameters from its Table 10. Its ResNets have the stride in the first 1x1
# convolution of a block, as timm's legacy networks do. The SK paper is arXiv 1903.06586.
PUBLISHED = (
    *_pair('ResNet-50', 'legacy_seresnet50', 3.86, 3.87, 25.6, 28.1),
    *_pair('ResNet-101', 'legacy_seresnet101', 7.58, 7.60),
    *_pair('ResNet-152', 'legacy_seresnet152', 11.30, 11.32),
    *_pair('ResNeXt-50', 'legacy_seresnext50_32x4d', 4.24, 4.25),
    *_pair('ResNeXt-101', 'legacy_seresnext101_32x4d', 7.99, 8.00),
    PublishedCost('ResNeXt-50', 'SK, Table 2', 'resnext50_32x4d_plugin', 25.0, 4.24),
    PublishedCost('SENet-50', 'SK, Table 2', 'se_resnext50_32x4d_plugin', 27.7, 4.25),
    PublishedCost('SKNet-50', 'SK, Table 2', 'sk_resnext50_32x4d_plugin', 27.5, 4.47),
    PublishedCost('SKNet-101', 'SK, Table 2', 'sk_resnext101_32x4d_plugin', 48.9, 8.46),
    PublishedCost('ShuffleNetV2 0.5x', 'SK, Table 4', 'shufflenetv2_050_plugin', 1.40, 0.04039),
    PublishedCost('ShuffleNetV2 0.5x + SE', 'SK, Table 4', 'se_shufflenetv2_050_plugin', 1.56, 0.04085),
    PublishedCost('ShuffleNetV2 0.5x + SK', 'SK, Table 4', 'sk_shufflenetv2_050_plugin', 1.48, 0.04258),
    PublishedCost('ShuffleNetV2 1.0x', 'SK, Table 4', 'shufflenetv2_100_plugin', 2.45, 0.14035),
    PublishedCost('ShuffleNetV2 1.0x + SE', 'SK, Table 4', 'se_shufflenetv2_100_plugin', 2.66, 0.14173),
    PublishedCost('ShuffleNetV2 1.0x + SK', 'SK, Table 4', 'sk_shufflenetv2_100_plugin', 2.63, 0.14566),
    PublishedCost('ResNeXt-29, 16x32d', 'SK, Table 5', 'resnext29_16x32d_cifar_plugin', 25.2, None, size=32),
    PublishedCost('SENet-29', 'SK, Table 5', 'se_resnext29_16x32d_cifar_plugin', 35.0, None, size=32),
    PublishedCost('SKNet-29', 'SK, Table 5', 'sk_resnext29_16x32d_cifar_plugin', 27.7, None, size=32),
)
