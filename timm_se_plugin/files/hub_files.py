"""Files of the Hub and of saved models: fetched, checked, and read without running anything."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open

__all__ = ['CONFIG', 'WEIGHTS', 'fetch', 'read_config', 'tensor_shapes']

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
SAVED_AT = ('hf-hub:', 'local-dir:')  # prefixes of timm's names for saved models


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
