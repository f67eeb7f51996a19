"""A classifier to predict with, from wherever it lies."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset

from ..files.hub_files import CONFIG, FOLDER, SAVED_AT, read_config_json
from ..measuring.device import check_device
from ..models.names import check_model, trained_model
from ..weights.folders import saved_class_names
from ..weights.runs import MULTILABEL, data_config, read_run
from .checkpoint import BEST, LAST, runs_in
from .onnx_file import open_onnx
from .prediction import Classifier

__all__ = ['open_classifier']

_logger = logging.getLogger(__name__)


def open_classifier(place: str, device: str = 'cpu') -> Classifier:
    """Load a classifier.

    Args:
        place: folder of a run or of a saved model, ``'hf-hub:user/repo'``, ``'local-dir:folder'``, an ``.onnx`` file of
            :func:`~.onnx_file.export_onnx`, or a name of timm, whose published weights are then loaded.
        device: where to compute.

    Raises:
        ValueError: an unknown device or name, a name without published weights, a folder without a model, or a network
            without classes.
    """
    if place.endswith('.onnx'):
        if device.partition(':')[0] != 'cpu':
            raise ValueError(f'device={device!r} is not possible with an ONNX file, which is computed on the CPU here')
        return open_onnx(place)
    check_device(device)
    config: dict[str, Any] | None = None
    names: Sequence[str] | None = None
    if os.path.isdir(place) and not os.path.isfile(os.path.join(place, CONFIG)):
        run = read_run(place)
        if run is None:
            raise ValueError(_no_classifier(Path(place)))
        model, config, _, said = run
        names = run.label_names
    else:
        name = f'{FOLDER}{place}' if os.path.isdir(place) else place
        if os.path.isfile(place):
            raise ValueError(f'{place} is a file of weights; give the folder {Path(place).parent} if it is that of a '
                             'run, or that of a model which timm-se convert makes of the file')
        check_model(name)
        if ':' not in name and not timm.models.is_model_pretrained(name):
            raise ValueError(f'{name} has no published weights, and random ones predict nothing; --model takes the '
                             'folder of a run or of a saved model too')
        model = trained_model(name)
        said = read_config_json(name) if name.startswith(SAVED_AT) else {}
    network: Any = model.to(device).eval()
    if not network.num_classes:
        raise ValueError(f'{place} gives features and no classes')
    names = names or saved_class_names(network) or _imagenet(network)
    if not names or len(names) != network.num_classes:
        names = [str(i) for i in range(network.num_classes)]
        _logger.warning('%s has no names of classes, which are called by their numbers', place)
    return Classifier(network, config or data_config({}, network), names, said.get('problem_type') == MULTILABEL,
                      said.get('upright', True))


def _no_classifier(folder: Path) -> str:
    """What a folder without a classifier is instead."""
    if (folder / 'last_checkpoint').is_file():  # MMEngine's
        return f'{folder} is the folder of a detector, which timm-se detect predict takes'
    runs = runs_in(folder)
    hint = f'; give one of the folders of runs in it: {", ".join(map(str, runs))}' if runs else ''
    return f'{folder} has no {CONFIG}, as a saved model has, and no {BEST} and no {LAST}, as a training leaves{hint}'


def _imagenet(model: Any) -> list[str] | None:
    subset = infer_imagenet_subset(model)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]
