"""Files of the Hub, and what a file of weights must be before a model is made for it."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from timm.models import PretrainedCfg
from torch import nn

from .loading import shortened

__all__ = ['check_saved_weights', 'fetch', 'tensor_shapes']

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'


def fetch(repo: str, name: str) -> Path:
    """Path of a file of a Hub repository: in the cache, downloaded if it isn't there.

    Args:
        repo: ``'user/repo'`` or ``'user/repo@revision'``.
        name: the file.

    Raises:
        FileNotFoundError: the repository has no such file, or offline mode is on and it isn't in the cache.
        ConnectionError: the Hub gives no answer, or no usable one, and the file isn't in the cache.
        ValueError: the file is not the one that the Hub says it is.
        HfHubHTTPError: no such repository or revision, or no access; the message says which.
    """
    repo_id, _, revision = repo.partition('@')
    try:
        path = Path(hf_hub_download(repo_id, name, revision=revision or None, library_name='timm_se_plugin'))
    except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, which it is not
        cause = error.__cause__
        if isinstance(cause, OfflineModeIsEnabled):
            raise FileNotFoundError(f'{name} of {repo} is not in the cache, and offline mode is on') from error
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code < 500:
            raise cause from None
        raise ConnectionError(
            f'{name} of {repo} is not in the cache, and the Hub could not be reached: {cause or error}') from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f'{repo} has no file {name}') from error
    blob = path.resolve()
    # The cache names a large file by its SHA-256, which the client doesn't compare.
    if re.fullmatch(r'[0-9a-f]{64}', blob.name) and _sha256(blob) != blob.name:
        blob.unlink()
        raise ValueError(f'{name} of {repo} is corrupted: its SHA-256 is not {blob.name}; it was removed from the '
                         'cache; try again')
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a safetensors file, from its header, which has to agree with the file's size.

    Raises:
        ValueError: the file is truncated, corrupted, or something else.
    """
    try:
        with safe_open(path, framework='pt') as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f'{path} is truncated or corrupted ({error}); delete {Path(path).resolve()} and get it '
                         'again') from error


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


def read_config(repo: str) -> dict[str, Any]:
    """What ``config.json`` of a folder (``'local-dir:…'``) or a Hub repository (``'hf-hub:…'``) says.

    Raises:
        ValueError: it isn't JSON, or not an object; also what :func:`fetch` raises.
    """
    kind, _, place = repo.partition(':')
    if kind not in ('hf-hub', 'local-dir') or not place:
        raise ValueError(f"{repo!r} is not allowed; allowed: 'hf-hub:user/repo', 'local-dir:folder'")
    path = fetch(place, CONFIG) if kind == 'hf-hub' else Path(place, CONFIG)
    if not path.is_file():
        raise FileNotFoundError(f'{place} has no {CONFIG}')
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not JSON: {error}') from error
    if not isinstance(config, dict):
        raise ValueError(f'{path} holds {type(config).__name__}; allowed: an object')
    return config
