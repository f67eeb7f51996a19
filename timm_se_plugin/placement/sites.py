"""Where a network carries attention, read from the network itself."""

from timm.layers import CecaModule, GatherExcite, SEModule
from timm.layers.cbam import LightCbamModule
from timm.layers.selective_kernel import SelectiveKernelAttn as TimmSelectiveKernelAttn
from timm.layers.squeeze_excite import SqueezeExciteCl
from timm.models._efficientnet_blocks import SqueezeExcite as EfficientNetSqueezeExcite  # private: of its families
from timm.models.hgnet import EseModule
from timm.models.senet import SEModule as LegacySEModule
from torch import nn

from ..layers.selective_kernel import SelectiveKernelAttn
from .attention_layers import ATTENTION_LAYERS

__all__ = ['attention_modules', 'counted_attention']

_ATTENTION_LAYERS = (*ATTENTION_LAYERS, SelectiveKernelAttn, SEModule)
# What timm's other families carry, which the plugin neither places nor takes away.
_OTHERS = (
    CecaModule, EfficientNetSqueezeExcite, EseModule, GatherExcite, LegacySEModule, LightCbamModule, SqueezeExciteCl,
    TimmSelectiveKernelAttn)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every attention layer in `model` that the plugin places or replaces, by its name; not the parts of one."""
    return _found(model, _ATTENTION_LAYERS)


def counted_attention(model: nn.Module) -> dict[str, nn.Module]:
    """Every channel attention in `model` by its name, that of timm's other families too; not the parts of one."""
    return _found(model, (*_ATTENTION_LAYERS, *_OTHERS))


def _found(model: nn.Module, types: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():  # a module comes before its parts
        if isinstance(module, types) and not name.startswith(tuple(f'{outer}.' for outer in found)):
            found[name] = module
    return found
