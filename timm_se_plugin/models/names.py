"""Names that timm can build."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.models._hub import save_config_for_hf  # private: timm exports only the function that writes weights too
from torch import nn

from ..files.hub_files import BEST, CONFIG, FOLDER, HUB, LAST, SAVED_AT, WEIGHTS
from ..placement.spec import AttentionSpec
from ._registry import architectures

__all__ = ['check_model', 'create_network', 'description', 'keywords_of', 'trained_model']

_WEIGHTS = ('.safetensors', '.pth', '.pth.tar', '.bin')  # endings of the files that timm looks for in a folder
# Options of the commands for arguments of timm.create_model.
_OPTIONS = {'num_classes': '--num-classes', 'drop_path_rate': '--drop-path', 'pretrained': '--pretrained'}


def check_model(name: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Refuse a name that timm cannot build, and attention for a network that does not take it by a keyword.

    Raises:
        ValueError: neither timm nor the plugin has a model of this name, it is a path and not the name of a saved
            model, or it is timm's own and `arguments` have an ``attn``.
        FileNotFoundError: a ``local-dir:`` without a saved model.
    """
    plain, place = name.partition('.')[0], Path(name.removeprefix(FOLDER))
    if name.startswith(FOLDER) or not timm.is_model(plain):
        _check_place(name, place)
    if ':' not in name and not timm.is_model(plain):  # hf-hub: and local-dir: name saved models
        own = [f'{plain}_plugin{name.removeprefix(plain)}'] if f'{plain}_plugin' in architectures else []
        close = [*own, *get_close_matches(name, timm.list_models(), 3 - len(own))]
        hint = f'did you mean {", ".join(close)}?' if close else '`timm-se models` lists all names'
        if '/' in name:
            hint = f'there is no such folder either, and a model of the Hub is named {HUB}user/repo'
        raise ValueError(f'the model {name} is unknown; {hint}')
    opened, asks = f'{plain}_plugin', any(key.startswith('attn') for key in arguments or ())
    if asks and plain not in architectures and opened in architectures:
        raise ValueError(f"{plain} is timm's own network and takes no attn=; use {opened}, the same network, instead")


def _check_place(name: str, place: Path) -> None:
    """Refuse a path that is not, or not called, a saved model."""
    if (place / CONFIG).is_file():
        if not name.startswith(FOLDER):
            raise ValueError(f'{name} is the folder of a saved model, whose name is {FOLDER}{name}')
        return
    weights = next((path for path in (place, place / BEST, place / LAST) if path.is_file()), None)
    if weights:
        raise ValueError(f'{place} has the weights of a training, and no {CONFIG} of a saved model: `timm-se convert '
                         f'{weights} NETWORK folder`, with the name of the network, makes the model {FOLDER}folder')
    if name.startswith(FOLDER):
        raise FileNotFoundError(f'there is no saved model in {place.absolute()}, which has no {CONFIG}')


def trained_model(name: str) -> nn.Module:
    """A network with its published or saved weights.

    Raises:
        ValueError: as :func:`check_model`, or a folder without weights.
        ConnectionError: the weights cannot be fetched, and are not in the cache.
    """
    check_model(name)
    folder = Path(name.removeprefix(FOLDER))
    if name.startswith(FOLDER) and folder.is_dir() and not any(
            path.name.endswith(_WEIGHTS) for path in folder.iterdir()):
        raise ValueError(f'{folder} has no file of weights, such as {WEIGHTS}; copy or fetch the whole folder again')
    return _built(name, pretrained=True)


def _built(name: str, **arguments: Any) -> nn.Module:
    """``timm.create_model``, with an error that says which weights cannot be fetched."""
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except LocalEntryNotFoundError as error:
        is_offline = isinstance(error.__cause__, OfflineModeIsEnabled)
        raise ConnectionError(f'the weights of {name} are not in the cache, and ' + (
            'offline mode is on; unset HF_HUB_OFFLINE to download them' if is_offline
            else f'the Hub could not be reached: {error.__cause__ or error}')) from error
    return model


def create_network(
        name: str, kept: Mapping[str, Any] | None = None, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """``timm.create_model`` for a network whose description a checkpoint may hold.

    Args:
        name: name of the network, or of a saved model.
        kept: :func:`description` of the network that was built of the saved model `name`; the network is then built
            without its weights, and the saved model need not be there.
        pretrained: load published or saved weights.
        **arguments: of ``timm.create_model``.

    Raises:
        ValueError, FileNotFoundError: as :func:`check_model`.
        ConnectionError: as :func:`trained_model`.
    """
    if not kept or not name.startswith(SAVED_AT):
        check_model(name, arguments)
        return _built(name, pretrained=pretrained, **arguments)
    with TemporaryDirectory() as folder:
        Path(folder, CONFIG).write_text(json.dumps(kept), encoding='utf-8')
        model: Any = timm.create_model(f'{FOLDER}{folder}', **arguments)
    model.pretrained_cfg['file'] = None
    return model


def description(model: Any) -> dict[str, Any]:
    """What timm writes into the ``config.json`` of a network, from which it builds the network again."""
    with TemporaryDirectory() as folder:
        path = Path(folder, CONFIG)
        save_config_for_hf(model, path)
        described: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    described.get('model_args', {}).pop('drop_path_rate', None)
    return described


@contextmanager
def keywords_of(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Name one of the `arguments` that the constructor of the network, which is called inside, does not take.

    Raises:
        ValueError: in the place of Python's ``TypeError``, also for an argument that the caller gives by itself.
    """
    try:
        yield
    except TypeError as error:
        refused = re.search(r"(unexpected|multiple values for) keyword argument '(\w+)'", str(error))
        if refused is None or refused[2] not in arguments:
            raise
        if refused[1] != 'unexpected':
            option = _OPTIONS.get(refused[2], 'an option of its own')
            raise ValueError(f'{refused[2]} is not given by --model-kwargs but by {option}') from error
        known = ['attn', *(f'attn_{field.name}' for field in fields(AttentionSpec))]
        if refused[2] in known:
            raise ValueError(f'{name} takes no {refused[2]!r}: `timm-se models` lists the networks that take attention '
                             'by a keyword, and timm_se_plugin.add_attention adds it to others') from error
        close = get_close_matches(refused[2], known, 1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        raise ValueError(f'{name} takes no keyword {refused[2]!r}{hint}') from error
