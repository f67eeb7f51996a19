"""The widths of a pruned network: which layers differ from the whole network, and how to build such a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import FeatureInfo
from torch import Tensor, nn

from .structure import image_size, run_structure, structure_of

__all__ = ['changed_widths', 'set_widths', 'tell_widths']

_LAYERS = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)


def _layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules()
            if isinstance(module, _LAYERS) and isinstance(module.weight, Tensor)}


def changed_widths(model: nn.Module, whole: nn.Module) -> dict[str, list[int]]:
    """Widths of the layers that differ from those of the whole network.

    Args:
        model: a network, pruned or not.
        whole: the network that has the same name and arguments.

    Returns:
        The first two dimensions of the weight by the layer's name: outputs and inputs (of one group) of a convolution
        or a linear layer, channels of a norm. Empty if the networks do not consist of the same layers.
    """
    layers = _layers(model)
    others = _layers(whole)
    if layers.keys() != others.keys():
        return {}
    return {name: list(layer.weight.shape[:2]) for name, layer in layers.items()
            if layer.weight.shape != others[name].weight.shape}


@torch.no_grad()
def set_widths(model: nn.Module, widths: Mapping[str, Sequence[int]]) -> None:
    """Give layers of a network other widths, and new weights.

    Args:
        model: the whole network, which is changed.
        widths: what :func:`changed_widths` returned.

    Raises:
        ValueError: a name that belongs to no convolution, linear layer or norm, or widths that do not fit the layer.
    """
    layers = _layers(model)
    for name, shape in widths.items():
        layer = layers.get(name)
        if layer is None or len(shape) != min(2, layer.weight.dim()) or min(shape) < 1:
            raise ValueError(f'pruned_widths gives {name!r} the widths {list(shape)}, which do not fit a layer of this '
                             f'{type(model).__name__}')
        if isinstance(layer, nn.Conv2d):
            is_depthwise = layer.groups == layer.out_channels == layer.in_channels
            layer.groups = shape[0] if is_depthwise else layer.groups
            layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = shape
        else:
            layer.num_features = shape[0]
        for kind, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            if tensor.dim():  # not num_batches_tracked, a scalar
                resized = tensor.new_empty((*shape, *tensor.shape[2:]) if kind == 'weight' else shape[:1])
                setattr(layer, kind, nn.Parameter(resized) if isinstance(tensor, nn.Parameter) else resized)
        layer.reset_parameters()
    tell_widths(model)


def tell_widths(model: Any, input_size: tuple[int, int, int] | None = None) -> None:
    """Set the channel counts in a network's attributes (``feature_info``, ``num_features``) to those of a pass.

    Args:
        model: the network, which is changed.
        input_size: (C, H, W) of the image that passes; if None, the size in the network's configuration.
    """
    levels = model.feature_info if isinstance(getattr(model, 'feature_info', None), list) else []
    widths: dict[str, int] = {}
    structure: Any = structure_of(model)
    for level in levels:
        structure.get_submodule(level['module']).register_forward_hook(
            lambda module, args, output, name=level['module']: widths.update({name: output.shape[1]}))
    size = input_size or image_size(model)
    outputs = run_structure(structure, size)
    for level in levels:
        level['num_chs'] = widths.get(level['module'], level['num_chs'])
    info = getattr(model, 'feature_info', None)
    if isinstance(info, FeatureInfo) and isinstance(outputs, Mapping | list | tuple):  # it gives the maps of its levels
        maps = outputs.values() if isinstance(outputs, Mapping) else outputs
        for i, output in zip(info.out_indices, maps, strict=True):
            info.info[i]['num_chs'] = output.shape[1]
    if not hasattr(model, 'get_classifier') or not hasattr(model, 'num_features'):
        return
    classifier = model.get_classifier()
    if isinstance(classifier, nn.Linear):
        found = classifier.in_features
    elif isinstance(classifier, nn.Identity) and isinstance(outputs, Tensor):  # num_classes=0
        found = outputs.shape[1]
    else:
        return
    hidden = getattr(model, 'head_hidden_size', None)
    if hidden in (None, model.num_features):
        model.num_features = found
    else:  # layers between the last map and the classifier, as in MobileNet-V3
        structure.forward = structure.forward_features
        model.num_features = run_structure(structure, size).shape[1]
    if hidden is not None:
        model.head_hidden_size = found
