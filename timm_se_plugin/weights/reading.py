"""Weights of a file, and what the file says of them."""

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from ..files.hub_files import tensor_shapes
from ..files.writing import is_whole
from ..models.state_dicts import StateDict
from .caffe import caffe_layers

__all__ = ['read_weights']

# Where a file keeps its weights if they are not all that it has: timm, MMEngine, and most others.
_HOLDERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')


def read_weights(path: str | Path) -> tuple[StateDict, dict[str, Any]]:
    """Weights of a file, without unpickling anything but tensors and plain data; and what the file says beside them.

    Of a training's checkpoint the moving average is taken, if there is one.

    Args:
        path: ``.safetensors``, ``.caffemodel``, or what ``torch.save`` wrote.

    Returns:
        The weights; the ``meta`` of MMEngine's files, of timm's the ``args`` as a mapping and the ``epoch``, and of
        this package's trainer the ``label_names`` too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a broken file, one that asks for code to run, or one without weights.
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
        raise ValueError(f'{path} is broken: a checksum is not that of its content')
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # in timm's checkpoints
            loaded = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # pickle, zip and reader errors have no class in common
        raise ValueError(f'{path} is not a file of weights, or it is broken: {error}') from error
    found = loaded
    for name in _HOLDERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            found = loaded[name]
            break
    weights = {key: value for key, value in found.items() if isinstance(value, Tensor)} \
        if isinstance(found, Mapping) else {}
    if not weights:
        raise ValueError(f'{path} holds no weights; allowed: a state dict, alone or as one of {", ".join(_HOLDERS)}')
    said: dict[str, Any] = {}
    if found is not loaded:
        said |= loaded.get('meta') or {}
        said |= {key: loaded[key] for key in ('args', 'epoch', 'label_names') if key in loaded}
        if isinstance(said.get('args'), argparse.Namespace):
            said['args'] = vars(said['args'])
    return clean_state_dict(weights), said
