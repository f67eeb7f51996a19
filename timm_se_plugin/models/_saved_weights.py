"""What a file of weights must be before a model is made for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.models import PretrainedCfg
from torch import nn

from ..files.hub_files import WEIGHTS, fetch, tensor_shapes
from .state_dicts import shortened

__all__ = ['check_saved_weights']


def check_saved_weights(cfg: PretrainedCfg, build: Callable[[bool], nn.Module]) -> None:
    """Look at the weights that timm is about to load from the Hub or a folder, before any memory is taken for them.

    Weights in PyTorch's own format, which timm reads without unpickling, are left to timm.

    Args:
        cfg: where they are.
        build: makes the model, called with False: without its weights, and here without memory, on the meta device.

    Raises:
        ValueError: a broken file, or a tensor of another shape than the model has; also what :func:`fetch` raises.
    """
    path = _weights_file(cfg)
    if path is None:
        return
    shapes = tensor_shapes(path)
    with torch.device('meta'):
        model: Any = build(False)
    asked = {cfg.classifier: ('num_classes', cfg.num_classes), cfg.first_conv: ('in_chans', cfg.input_size[0])}
    adapted = tuple(f'{layer}.' for layer, (name, theirs) in asked.items()  # by timm, to what the user asks for
                    if getattr(model, name, None) != theirs)  # a network of features knows neither
    wrong = {f'{key} {shapes[key]} for {tuple(tensor.shape)}' for key, tensor in model.state_dict().items()
             if key in shapes and shapes[key] != tuple(tensor.shape) and not key.startswith(adapted)}
    if wrong:
        raise ValueError(f'{path} does not fit {cfg.architecture}: of another shape {shortened(wrong)}')


def _weights_file(cfg: PretrainedCfg) -> Path | None:
    if cfg.source == 'local-dir':
        path = Path(str(cfg.file), WEIGHTS)
        return path if path.is_file() else None
    from_hub = cfg.source == 'hf-hub' or not (cfg.state_dict or cfg.file)
    if not from_hub or not cfg.hf_hub_id or cfg.hf_hub_filename:
        return None
    try:
        return fetch(cfg.hf_hub_id, WEIGHTS)
    except FileNotFoundError:
        return None  # in PyTorch's format, or offline: timm looks on
