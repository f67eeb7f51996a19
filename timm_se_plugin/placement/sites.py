"""Where a network carries attention, read from the network itself."""

from timm.layers import EcaModule, EffectiveSEModule, SEModule
from torch import nn

from ..layers import SqueezeExcite
from ..layers.selective_kernel import SelectiveKernelAttn

__all__ = ['attention_modules']

_ATTENTION_LAYERS = (SqueezeExcite, SelectiveKernelAttn, SEModule, EffectiveSEModule, EcaModule)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every attention layer in `model` by its name, the plugin's own and timm's."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _ATTENTION_LAYERS)}
