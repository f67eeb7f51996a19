"""Check that two networks compute the same function of the same weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..models.state_dicts import Misfit
from ..placement import AttentionSpec
from ..placement.finding import attention_keys
from ..placement.spec import attention_misfit
from ..placement.structure import image_size
from .layouts import layout_of, renamed

__all__ = ['check_same_function']


@torch.no_grad()
def check_same_function(model: nn.Module, reference: nn.Module, gains_attention: bool = False) -> dict[str, str]:
    """Raise ValueError unless `reference` and `model` compute the same function of equal weights.

    Both networks get the same random weights and compute the pooled features of random images in float64. BatchNorm
    is in training mode, which gives all maps the same scale, so that a large branch cannot hide a difference in
    another.

    Args:
        model: a model of the plugin.
        reference: a model of timm.
        gains_attention: whether `model` may have attention that `reference` lacks. With its initial values, that
            attention must not change anything.

    Returns:
        The reference's key for each key of the model.
    """
    network: Any = copy.deepcopy(model).double().eval()
    other: Any = copy.deepcopy(reference).double().eval()
    for module in (*network.modules(), *other.modules()):
        module.training = isinstance(module, nn.BatchNorm2d)
    name, reference_name = (net.pretrained_cfg['architecture'] for net in (network, other))
    own, weights = network.state_dict(), other.state_dict()
    given, origin = renamed(layout_of(weights), weights)
    misfit = Misfit.of(given, own, ignored=attention_keys(model) if gains_attention else ())
    if misfit:
        own_attn, other_attn = AttentionSpec.of(model), AttentionSpec.of(reference)
        different = attention_misfit(own_attn, other_attn) if own_attn and other_attn else ''
        raise ValueError(f'weights of {reference_name} do not fit {name}: {different or misfit}')
    generator = torch.Generator().manual_seed(0)
    for tensor in weights.values():  # the same tensors as in `given`
        if tensor.is_floating_point():
            tensor.normal_(0, tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 1.0, generator=generator)
    network.load_state_dict({**own, **given})
    size = image_size(network)[1:] if network.pretrained_cfg.get('fixed_input_size') else (96, 96)
    x = torch.randn(4, network.in_chans, *size, generator=generator, dtype=torch.float64)
    expected, found = (net.forward_features(x) for net in (other, network))
    if _differ(found, expected):
        raise ValueError(f'{name} and {reference_name} have the same keys and shapes, but compute different functions, '
                         'so neither can use the weights of the other')
    if _differ(network.forward_head(found, pre_logits=True), other.forward_head(expected, pre_logits=True)):
        raise ValueError(f'{name} and {reference_name} compute the same features and pool them differently; make both '
                         'with the same global_pool')
    return origin


def _differ(found: Tensor, expected: Tensor) -> bool:
    return found.shape != expected.shape or float((found - expected).abs().max()) > 1e-6 * float(expected.abs().max())
