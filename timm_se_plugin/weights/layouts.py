"""Other packages' names for the weights of a ResNet, and timm's names for the same, which are the plugin's too."""

import re
from collections.abc import Mapping
from typing import Any

from ..models._published import legacy_keys, sk_keys
from ..models.state_dicts import StateDict
from .caffe import caffe_keys, is_caffe

__all__ = ['is_elsewhere', 'layout_of', 'renamed', 'sizes']


def layout_of(keys: Mapping[str, Any]) -> str:
    """Whose names state-dict keys are.

    Returns:
        ``'resnet'`` for timm's and torchvision's, ``'timm-sk'``, ``'cadene'`` (timm's ``legacy_*`` too),
        ``'mmpretrain'``, ``'mmdet'`` or ``'caffe'``.
    """
    if is_caffe(keys):
        return 'caffe'
    if any('.se_layer.' in key for key in keys) or (  # timm's networks have a head.fc too, and no backbone
            'head.fc.weight' in keys and any(key.startswith('backbone.') for key in keys)):
        return 'mmpretrain'
    if any(key.startswith('backbone.') for key in keys):
        return 'mmdet'
    if any(key.startswith('layer0.') for key in keys):
        return 'cadene'
    if any(re.match(r'layer\d\.\d+\.conv\d\.conv\.', key) for key in keys):
        return 'timm-sk'
    return 'resnet'


def renamed(layout: str, weights: StateDict) -> tuple[StateDict, dict[str, str]]:
    """Weights of a layout under timm's names, and the original name of each."""
    if layout == 'caffe':  # values change too, not only names
        return caffe_keys(weights)
    rename: Any = {
        'cadene': legacy_keys, 'timm-sk': sk_keys, 'mmpretrain': _mmpretrain_keys, 'mmdet': _mmdet_keys,
        'resnet': dict}[layout]
    return rename(weights), rename({key: key for key in weights})


def _mmpretrain_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key.replace('.se_layer.conv1.conv.', '.se.fc1.').replace('.se_layer.conv2.conv.', '.se.fc2.').replace(
            'head.fc.', 'fc.'): value for key, value in _backbone_keys(keys).items()}


def _mmdet_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a detector's backbone, with those of ``SEPlugin`` in mmdet's own ResNet as the block's ``se``."""
    return {re.sub(r'^(layer\d\.\d+)\.se\w*\.', r'\1.se.', key): value for key, value in _backbone_keys(keys).items()}


def _backbone_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {re.sub(r'^backbone\.(net\.)?', '', key): value for key, value in keys.items()}


def is_elsewhere(layout: str, key: str) -> bool:
    """Whether a key is no part of the network: it is of a detector's neck or head, or of mmpretrain's preprocessing."""
    return layout in ('mmdet', 'mmpretrain') and not key.startswith(('backbone.', 'head.fc.'))


def sizes(weights: StateDict) -> dict[str, int]:
    """Number of classes and input channels (``num_classes``, ``in_chans``) of a network, where its weights tell."""
    found = {}
    for key, tensor in weights.items():
        if re.fullmatch(r'(head\.)?(fc|last_linear)\.weight|classifier\.0', key):
            found['num_classes'] = tensor.flatten(0, -2).shape[0]
        elif re.fullmatch(r'(backbone\.|layer0\.)?conv1(\.0)?\.weight|conv1(_1)?/[37]x[37]_s2\.0', key):
            found['in_chans'] = tensor.shape[1]
    return found
