"""Fetch a shared model into a folder, after a check."""

import os
import shutil
import tempfile
from pathlib import Path

from ..files.hub_files import CONFIG, WEIGHTS, read_config_json, saved_file, tensor_shapes
from ..models.names import trained_model
from ..weights.reading import read_weights

__all__ = ['pull_from_hub']

_PICKLED = 'pytorch_model.bin'  # which timm reads in repositories without model.safetensors


def pull_from_hub(place: str, folder: str | Path) -> dict[str, int]:
    """Fetch a shared model or detector into a folder, from which ``'local-dir:folder'`` loads it.

    The model is built with its weights before anything is written.

    Args:
        place: ``'hf-hub:user/repo'``, ``'hf-hub:user/repo@revision'`` or ``'local-dir:folder'``.
        folder: the folder to write into; new or empty.

    Returns:
        The size of each file in bytes.

    Raises:
        ValueError: the folder holds files, or the model is refused; the message says why.
        FileNotFoundError: a file of the model does not exist.
        ConnectionError: the Hub cannot be reached, and the files are not in the cache.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f'{folder} exists and is not an empty folder; name another one')
    names = [CONFIG, WEIGHTS]
    described = read_config_json(place)
    if described.get('task') == 'object-detection':
        from ..detection.hub import DETECTOR, pull_detector
        pull_detector(place)
        names.append(DETECTOR)
    elif 'architecture' in described:
        names[1] = _checked_weights(place)
        trained_model(place)
    else:
        raise ValueError(f'{place} is neither a model of timm nor a detector of timm_se_plugin: its {CONFIG} names no '
                         'architecture')
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.', dir=folder) as part:  # no half of a file has its name in the folder
        for name in names:
            shutil.copyfile(saved_file(place, name), Path(part, name))
        for name in names:
            os.replace(Path(part, name), folder / name)
    return {name: (folder / name).stat().st_size for name in names}


def _checked_weights(place: str) -> str:
    """Name of the file of a classifier's weights, which is refused if it is broken, or would run code."""
    try:
        tensor_shapes(saved_file(place, WEIGHTS))
        return WEIGHTS
    except FileNotFoundError as error:
        try:
            pickled = saved_file(place, _PICKLED)
        except FileNotFoundError:
            raise error from None
        read_weights(pickled)
        return _PICKLED
