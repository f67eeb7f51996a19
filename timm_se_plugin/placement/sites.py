"""Where a network carries attention, read from the network itself."""

from timm.layers import SEModule
from torch import nn

from ..layers.selective_kernel import SelectiveKernelAttn
from .attention_layers import ATTENTION_LAYERS

__all__ = ['attention_modules']

_ATTENTION_LAYERS = (*ATTENTION_LAYERS, SelectiveKernelAttn, SEModule)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every attention layer in `model` by its name, the plugin's own and timm's; not the parts of one."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():  # a module comes before its parts
        if isinstance(module, _ATTENTION_LAYERS) and not name.startswith(tuple(f'{outer}.' for outer in found)):
            found[name] = module
    return found
