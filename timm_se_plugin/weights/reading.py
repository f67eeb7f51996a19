"""Reading of weights from a file, with the file's metadata."""

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from ..files.hub_files import check_not_pointer, tensor_shapes
from ..files.writing import is_whole
from ..models.state_dicts import StateDict
from ..placement.record import told_attention
from .caffe import caffe_layers

__all__ = ['read_weights', 'reason_of']

# The entries in which timm, MMEngine, Lightning and others store weights; moving averages come first.
_HOLDERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model_state_dict', 'model', 'net')


def reason_of(error: Exception) -> str:
    """Why ``torch.load`` refused a file. Torch's own message is long, and advises to run what the file says."""
    found_by_torch = re.search(r'(?<=WeightsUnpickler error: )\s*(.+?)(?=\. Please|$)', str(error), re.MULTILINE)
    return (found_by_torch[1] if found_by_torch else str(error).partition('\n')[0] or type(error).__name__).strip()


def read_weights(path: str | Path) -> tuple[StateDict, dict[str, Any]]:
    """Read the weights in a file, and the file's metadata.

    Only tensors and plain data are unpickled. If a training's checkpoint has a moving average of the weights, that
    average is read.

    Args:
        path: a ``.safetensors`` or ``.caffemodel`` file, or a file that ``torch.save`` wrote (``.pth``, ``.tar``,
            ``.ckpt`` and any other).

    Returns:
        The weights by key, and a dict of metadata: the entries of ``meta`` in a file of MMEngine, ``args`` (as a
        mapping) and ``epoch`` in a file of timm, and also ``label_names``, ``model_config`` and ``position`` in a file
        of this package's trainer; and ``attention``, the keywords of their attention as JSON, if the weights tell them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, would run code, or has no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no file {path}')
    if path.suffix == '.safetensors':
        tensor_shapes(path)
        return load_file(path), {}
    if path.suffix == '.caffemodel':
        return caffe_layers(path), {}
    if zipfile.is_zipfile(path) and not is_whole(path):
        raise ValueError(f'{path} is broken: a checksum does not match the content')
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the class of the options in timm's checkpoints
            loaded = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # the errors of pickle, zip and torch have no class in common
        check_not_pointer(path)
        raise ValueError(f'{path} is broken, or not a file of weights only: {reason_of(error)}; of a whole model, '
                         'which is not read since it can run code, save model.state_dict() alone') from error
    found = loaded
    for name in _HOLDERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            found = loaded[name]
            break
    weights = {key: value for key, value in found.items() if isinstance(value, Tensor)} \
        if isinstance(found, Mapping) else {}
    if not weights:
        raise ValueError(f'{path} has no weights: it is no state dict and has none under {", ".join(_HOLDERS)}')
    said: dict[str, Any] = {}
    if found is not loaded:
        said |= _mapping(loaded.get('meta'))
        known = ('args', 'epoch', 'label_names', 'model_config', 'position')
        said |= {key: loaded[key] for key in known if key in loaded}
        if 'args' in said:
            said['args'] = _mapping(said['args'])
    told = told_attention(found)
    if told is not None:
        said['attention'] = told
    return clean_state_dict(weights), said


def _mapping(entry: Any) -> dict[str, Any]:
    """An entry of a file as a dict, which is empty for what other programs store under the same name."""
    entry = vars(entry) if isinstance(entry, argparse.Namespace) else entry
    return dict(entry) if isinstance(entry, Mapping) else {}
