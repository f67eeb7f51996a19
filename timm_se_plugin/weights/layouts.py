"""Translation of other packages' names for the weights of a ResNet to timm's, which the plugin has too."""

import re
from collections.abc import Mapping
from typing import Any

from timm.models import PretrainedCfg
from torch import Tensor

from ..models._published import legacy_keys, sk_keys
from ..models.state_dicts import StateDict
from .caffe import caffe_keys, is_caffe

__all__ = ['is_beside', 'is_elsewhere', 'layout_of', 'renamed', 'sizes', 'with_names', 'without_prefix']

# Prefixes that wrappers and users put before every key of a network.
_PREFIXES = ('model.', 'net.', 'module.', '_orig_mod.', 'timm_model.', 'backbone.')


def is_beside(key: str) -> bool:
    """Whether a key is of no network: of a loss, as of Lightning's modules, or the counter of an ``AveragedModel``."""
    return bool(re.match(r'(criterion|loss|loss_fn)\.|n_averaged$', key))


def without_prefix(weights: StateDict, is_detector: bool) -> tuple[StateDict, str]:
    """Weights without the prefixes that all keys share, and the removed prefix.

    Args:
        weights: the weights.
        is_detector: whether ``backbone.`` stays, because it is part of the names in MMEngine's checkpoints.
    """
    taken = ''
    while weights:
        prefix = next((prefix for prefix in _PREFIXES if not (is_detector and prefix == 'backbone.')
                       and all(key.startswith(prefix) for key in weights)), '')
        if not prefix:
            break
        taken += prefix
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights, taken


def with_names(weights: StateDict, renames: Mapping[str, str]) -> StateDict:
    """Weights with renamed parts of keys: ``{'linear': 'fc'}`` turns ``linear.weight`` into ``fc.weight``.

    ``{'encoder': ''}`` takes the part off: ``encoder.fc.weight`` becomes ``fc.weight``.

    Raises:
        ValueError: no key has such a part, or two keys become one.
    """
    for old, name in renames.items():
        new = str(name)  # on the command line, conv=0 is a number
        pattern = rf'(?<![^.]){re.escape(old)}' + (r'(?![^.])' if new else r'\.')
        if not any(re.search(pattern, key) for key in weights):
            raise ValueError(f'rename {old}={new}: no key has the part {old}; the first keys are '
                             f'{", ".join(list(weights)[:4])}')
        changed = {re.sub(pattern, new, key): value for key, value in weights.items()}
        if len(changed) < len(weights):
            raise ValueError(f'rename {old}={new} gives two weights the same key')
        weights = changed
    return weights


def layout_of(keys: Mapping[str, Any]) -> str:
    """The naming scheme of state-dict keys.

    Returns:
        ``'resnet'`` for timm's and torchvision's, ``'timm-sk'``, ``'cadene'`` (timm's ``legacy_*`` too),
        ``'mmpretrain'``, ``'mmdet'``, ``'caffe'``, or ``'pytorch-cifar'`` for those of the public CIFAR repositories
        (``linear``, ``shortcut``) and of the SE networks made from them (``SE.conv1``, ``se.fc.0``).
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
    if any(re.search(r'^linear\.|\.shortcut\.\d\.|\.SE\.conv\d\.|\.se\.fc\.\d\.', key) for key in keys):
        return 'pytorch-cifar'
    return 'resnet'


def renamed(layout: str, weights: StateDict) -> tuple[StateDict, dict[str, str]]:
    """Weights of a layout under timm's names, and the original name of each."""
    if layout == 'caffe':  # not only names change, but values too
        return caffe_keys(weights)
    rename: Any = {
        'cadene': legacy_keys, 'timm-sk': sk_keys, 'mmpretrain': _mmpretrain_keys, 'mmdet': _mmdet_keys,
        'pytorch-cifar': _pytorch_cifar_keys, 'resnet': dict}[layout]
    return rename(weights), rename({key: key for key in weights})


_PYTORCH_CIFAR = (
    (r'^linear\.', 'fc.'), (r'\.shortcut\.', '.downsample.'), (r'\.SE\.conv1\.', '.se.fc1.'),
    (r'\.SE\.conv2\.', '.se.fc2.'), (r'\.se\.fc\.0\.', '.se.fc1.'), (r'\.se\.fc\.2\.', '.se.fc2.'))


def _pytorch_cifar_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Linear layers of the excitation become 1x1 convolutions, whose weights have two more dimensions."""
    named = {}
    for key, value in keys.items():
        for old, new in _PYTORCH_CIFAR:
            key = re.sub(old, new, key)
        is_linear = '.se.fc' in key and isinstance(value, Tensor) and value.dim() == 2
        named[key] = value[:, :, None, None] if is_linear else value
    return named


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
    """Whether a key belongs to a detector's neck or head or to mmpretrain's preprocessing, not to the network."""
    return layout in ('mmdet', 'mmpretrain') and not key.startswith(('backbone.', 'head.fc.'))


def sizes(weights: StateDict, cfg: PretrainedCfg) -> dict[str, int]:
    """Numbers of classes and input channels (``num_classes``, ``in_chans``), as far as the weights show them.

    Args:
        weights: the weights.
        cfg: timm's configuration of the network, which names its classifier and its first convolution.
    """
    found = {}
    for key, tensor in weights.items():
        if key == 'classifier.0':  # of Caffe, (1, 1, classes, C)
            found['num_classes'] = tensor.shape[-2]
        elif key == f'{cfg.classifier}.weight' or re.fullmatch(r'(head\.)?(fc|last_linear|linear)\.weight', key):
            found['num_classes'] = tensor.shape[0]
        elif key == f'{cfg.first_conv}.weight' or re.fullmatch(
                r'(backbone\.|layer0\.)?conv1(\.0)?\.weight|conv1(_1)?/[37]x[37]_s2\.0', key):
            found['in_chans'] = tensor.shape[1]
    return found
