"""Files of saved models, on the Hugging Face Hub or in a folder: fetched, checked, and read without running code."""

import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError, safe_open

__all__ = [
    'BEST', 'CONFIG', 'FOLDER', 'HUB', 'LAST', 'SAVED_AT', 'WEIGHTS', 'check_inside', 'check_not_pointer', 'fetch',
    'hub_name', 'read_config_json', 'saved_file', 'tensor_shapes',
]

WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
BEST, LAST = 'model_best.pth.tar', 'last.pth.tar'  # checkpoints in the folder of a run, by timm's names
# How timm and this package name a saved model: 'hf-hub:user/repo', 'hf-hub:user/repo@revision' or 'local-dir:folder'.
SAVED_AT = HUB, FOLDER = 'hf-hub:', 'local-dir:'
_POINTER = b'version https://git-lfs.github.com/spec/'  # how each pointer of Git LFS begins


def hub_name(repo_id: str, revision: str | None = None) -> str:
    """Name of the model in a repository of the Hub, as ``timm.create_model`` takes it."""
    return f'{HUB}{repo_id}' + (f'@{revision}' if revision else '')


def saved_file(place: str, name: str) -> Path:
    """Path of a file of a saved model; the file is fetched if the model is on the Hub.

    Args:
        place: ``'hf-hub:user/repo'``, ``'hf-hub:user/repo@revision'`` or ``'local-dir:folder'``.
        name: name of the file.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: `place` names neither a repository nor a folder.
        ConnectionError, HfHubHTTPError: as :func:`fetch`.
    """
    prefix = next((prefix for prefix in SAVED_AT if place.startswith(prefix)), None)
    where = place.removeprefix(prefix or '')
    if not prefix or not where:
        raise ValueError(f"{place!r} does not name a saved model; give '{HUB}user/repo' or '{FOLDER}folder'")
    path = fetch(where, name) if prefix == HUB else Path(where, name)
    if not path.is_file():
        raise FileNotFoundError(f'{where} has no file {name}')
    return path


def check_inside(repo: str, name: str) -> None:
    """Raise ValueError unless `name` is a path inside the repository on every operating system.

    huggingface-hub up to 1.25.1 opens absolute paths, and paths that leave the repository by ``..``.
    """
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.anchor or '..' in path.parts:
            raise ValueError(f'{repo} asks for the file {name!r}, which is not inside the repository; do not load the '
                             'model before its author has corrected the name')


def fetch(repo: str, name: str, cache_dir: str | Path | None = None) -> Path:
    """Path of a file of a Hub repository in the cache, into which the file is downloaded if it is not there.

    Args:
        repo: ``'user/repo'`` or ``'user/repo@revision'``.
        name: name of the file.
        cache_dir: the folder of the cache; that of huggingface-hub if None.

    Raises:
        FileNotFoundError: the repository has no such file, or offline mode is on and the file is not in the cache.
        ConnectionError: the Hub gives no usable answer, and the file is not in the cache.
        ValueError: the content is not what the Hub announced, or `name` is not inside the repository.
        HfHubHTTPError: the repository or the revision does not exist, or access is denied; the message says which.
    """
    check_inside(repo, name)
    repo_id, _, revision = repo.partition('@')
    try:
        path = Path(hf_hub_download(
            repo_id, name, revision=revision or None, library_name='timm_se_plugin', cache_dir=cache_dir))
    except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, though the Hub may have the file
        cause = error.__cause__
        if isinstance(cause, OfflineModeIsEnabled):
            raise FileNotFoundError(f'{name} of {repo} is not in the cache, and offline mode is on; unset '
                                    'HF_HUB_OFFLINE to download the file') from error
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code < 500:
            raise cause from None
        raise ConnectionError(
            f'{name} of {repo} is not in the cache, and the Hub could not be reached: {cause or error}') from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f'{repo} has no file {name}') from error
    blob = path.resolve()
    # The cache names a large file by its SHA-256, which the client does not compare with the content.
    if re.fullmatch(r'[0-9a-f]{64}', blob.name):
        with blob.open('rb') as file:
            digest = sha_fileobj(file).hex()
        if digest != blob.name:
            blob.unlink()
            raise ValueError(f'{name} of {repo} is corrupted: its SHA-256 is {digest}, not {blob.name}. The file was '
                             'removed from the cache; try again')
    return path


def check_not_pointer(path: str | Path) -> None:
    """Raise ValueError if the file is a pointer of Git LFS, a short text that stands for a file not yet downloaded."""
    with Path(path).open('rb') as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise ValueError(f'{path} is a pointer of Git LFS, which stands for the file itself; run `git lfs pull` in '
                             'the repository, or download the file from the website')


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a safetensors file, from its header, which has to agree with the file's size.

    Raises:
        ValueError: the file is truncated, corrupted, or not in the safetensors format.
    """
    try:
        with safe_open(path, framework='pt') as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except SafetensorError as error:
        check_not_pointer(path)
        raise ValueError(f'{path} is truncated or corrupted ({error}); delete {Path(path).resolve()} and '
                         'download or copy the file again') from error


def read_config_json(place: str) -> dict[str, Any]:
    """Content of a saved model's ``config.json``.

    Args:
        place: as for :func:`saved_file`.

    Raises:
        ValueError: the file is not a JSON object, or `place` names neither a repository nor a folder.
        FileNotFoundError, ConnectionError, HfHubHTTPError: as :func:`saved_file`.
    """
    path = saved_file(place, CONFIG)
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not JSON: {error}') from error
    if not isinstance(config, dict):
        raise ValueError(f'{path} holds {type(config).__name__}, not a JSON object')
    return config
