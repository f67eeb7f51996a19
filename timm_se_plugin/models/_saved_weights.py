"""The check of a weights file before a model is built for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.models import PretrainedCfg
from torch import nn

from ..files.hub_files import WEIGHTS, check_inside, fetch, tensor_shapes
from .state_dicts import Misfit

__all__ = ['check_saved_weights']


def check_saved_weights(
        cfg: PretrainedCfg, build: Callable[[bool], nn.Module], cache_dir: str | Path | None = None) -> None:
    """Check the weights that timm is about to load from the Hub or a folder, before memory is allocated for them.

    Weights in PyTorch's own format, which timm loads with ``weights_only=True``, are left to timm.

    Args:
        cfg: timm's configuration, which says where the weights are.
        build: makes the model. It is called with False, for a model without weights, and on the meta device.
        cache_dir: the folder of the Hub's cache that timm is going to use; huggingface-hub's own if None.

    Raises:
        ValueError: the file is broken, has a tensor of another shape than the model, or is outside the repository.
        ConnectionError: as :func:`fetch`, which also raises ``HfHubHTTPError``.
    """
    path = _weights_file(cfg, cache_dir)
    if path is None:
        return
    shapes = tensor_shapes(path)
    with torch.device('meta'):
        model: Any = build(False)
    # timm adapts these layers to other numbers of classes or channels; a ``features_only`` network has neither number.
    saved = {cfg.classifier: ('num_classes', cfg.num_classes), cfg.first_conv: ('in_chans', cfg.input_size[0])}
    adapted = tuple(f'{layer}.' for layer, (name, count) in saved.items() if getattr(model, name, None) != count)
    given = {key: shape for key, shape in shapes.items() if not key.startswith(adapted)}
    wrong = Misfit(shapes=Misfit.of(given, model.state_dict()).shapes)
    if wrong:
        raise ValueError(f'{path} does not fit {cfg.architecture}: {wrong}')


def _weights_file(cfg: PretrainedCfg, cache_dir: str | Path | None) -> Path | None:
    if cfg.source == 'local-dir':
        path = Path(str(cfg.file), WEIGHTS)
        return path if path.is_file() else None
    from_hub = cfg.source == 'hf-hub' or not (cfg.state_dict or cfg.file)
    if not from_hub or not cfg.hf_hub_id:
        return None
    if cfg.hf_hub_filename:  # timm itself fetches that file
        check_inside(cfg.hf_hub_id, cfg.hf_hub_filename)
        return None
    try:
        return fetch(cfg.hf_hub_id, WEIGHTS, cache_dir)
    except FileNotFoundError:
        return None  # the weights are in PyTorch's format, or offline mode is on: timm handles both
