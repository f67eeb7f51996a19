"""Where a network carries attention, read from the network itself."""

from torch import nn

from ..layers.selective_kernel import SelectiveKernelAttn
from .attentions import attention_layers, start_at_identity
from .families import is_of

__all__ = ['attention_keys', 'attention_modules', 'counted_attention', 'restart_identity']

# timm's SE layer, which the plugin replaces by its own.
_REPLACED = ('timm.layers.squeeze_excite.SEModule',)
# Attention layers of timm's networks, of which the plugin replaces only the first.
_OTHERS = (
    *_REPLACED, 'timm.layers.cbam.LightCbamModule', 'timm.layers.eca.CecaModule',
    'timm.layers.gather_excite.GatherExcite', 'timm.layers.selective_kernel.SelectiveKernelAttn',
    'timm.layers.squeeze_excite.SqueezeExciteCl', 'timm.models._efficientnet_blocks.SqueezeExcite',
    'timm.models.hgnet.EseModule', 'timm.models.senet.SEModule')


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Attention layers in `model` that the plugin places or replaces, by name; parts of a layer are not listed."""
    return _found(model, _REPLACED)


def attention_keys(model: nn.Module) -> set[str]:
    """Keys of a network's state dict that belong to the layers of :func:`attention_modules`."""
    prefixes = tuple(f'{name}.' for name in attention_modules(model))
    return {key for key in model.state_dict() if key.startswith(prefixes)}


def counted_attention(model: nn.Module) -> dict[str, nn.Module]:
    """All attention layers in `model`, those of timm's other families included, by name; parts are not listed."""
    return _found(model, _OTHERS)


def restart_identity(model: nn.Module) -> None:
    """Set the attention made with ``init='identity'`` back to that start, after all weights have been drawn anew."""
    for layer in attention_modules(model).values():
        if getattr(layer, 'init', 'default') == 'identity':
            start_at_identity(layer)


def _found(model: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    layers = (*attention_layers(), SelectiveKernelAttn)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():  # a module comes before its parts
        if (isinstance(module, layers) or is_of(module, names)) and not name.startswith(
                tuple(f'{outer}.' for outer in found)):
            found[name] = module
    return found
