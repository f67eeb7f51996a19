"""A classifier as an ONNX file that says what its pictures need and what its classes are called, and back."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files.counting import counted
from ..files.onnx_files import CLASSIFIER, described, onnx_session, open_onnx_file
from ..files.packages import require
from ..files.pictures import pictures_of
from ..files.writing import write_atomically
from ..weights.runs import MULTILABEL
from .prediction import Classifier

__all__ = ['Export', 'export_onnx', 'open_onnx']

_logger = logging.getLogger(__name__)
_DESCRIBED = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
_TOLERANCE = 1e-3  # of a probability; operators in another order differ by 1e-6 or so


@dataclass(frozen=True)
class Export:
    """What was written and how it was checked.

    Args:
        file: the ONNX file.
        bytes: its size.
        dynamic_batch: whether it takes any number of pictures at once; otherwise it takes one.
        pictures: number of pictures that PyTorch and ONNX Runtime have compared.
        largest_difference: of a probability between the two.
    """

    file: str
    bytes: int
    dynamic_batch: bool
    pictures: int
    largest_difference: float


def export_onnx(classifier: Classifier, file: str | Path, pictures: Iterable[str | Path], most: int = 32) -> Export:
    """Write a classifier as an ONNX file, after ONNX Runtime has given what PyTorch gives.

    The file's input is ``images``, (N, C, H, W) in float32, and its output ``logits``, (N, classes). Its metadata have
    an entry ``timm_se_plugin``, JSON: the ``task``; timm's data configuration (``input_size``, ``mean``, ``std``,
    ``interpolation``, ``crop_pct``, ``crop_mode``; pixels go from 0 to 1 before the mean is taken off); and
    ``label_names``, the classes in the order of the logits. ``problem_type`` is ``multi_label_classification``, as in
    ``config.json``, where a picture has any number of them and a probability is the sigmoid of a logit. ``upright`` is
    false where pictures are read as they are stored, whatever their EXIF orientation.

    Args:
        classifier: of :func:`~.classifiers.open_classifier`, on the CPU.
        file: the file to write.
        pictures: picture files and folders to check it on.
        most: pictures that are compared at most.

    Raises:
        ValueError: the two differ, there is no readable picture, or the network cannot be exported.
        FileNotFoundError: there is no picture.
        ModuleNotFoundError: the [export] extra is not installed.
    """
    require('export', 'onnx', 'onnxruntime', 'onnxscript')
    x = _images(classifier, pictures, most)
    description = {**{key: classifier.config[key] for key in _DESCRIBED if key in classifier.config},
                   **({'problem_type': MULTILABEL} if classifier.is_multilabel else {}),
                   **({} if classifier.upright else {'upright': False}),
                   'label_names': list(classifier.names)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.onnx')
        is_dynamic = _written(classifier.logits, x, path)
        content = described(path, CLASSIFIER, description)
    found = replace(classifier, logits=_logits(onnx_session(content))).scores(x)
    with torch.no_grad():
        expected = classifier.scores(x)
    difference = float((found - expected).abs().max())
    if not difference <= _TOLERANCE:
        raise ValueError(f'{file} is not written: ONNX Runtime gives probabilities that differ by up to '
                         f'{difference:.2g} from those of PyTorch on {counted(len(x), "picture")}')
    write_atomically(Path(file), content)
    return Export(str(file), len(content), is_dynamic, len(x), difference)


def _images(classifier: Classifier, pictures: Iterable[str | Path], most: int) -> Tensor:
    images = [image for _, image in islice(classifier.images(pictures_of(pictures)), most)]
    if not images:
        raise ValueError('none of the pictures to check the file on can be read')
    return torch.stack(images)


def _written(model: Any, x: Tensor, path: Path) -> bool:
    """Write the network for any number of pictures, or for one where that fails; returns whether for any."""
    if not isinstance(model, nn.Module):
        raise ValueError('a classifier that is an ONNX file already is not exported again')
    batch = torch.cat((x, x))[:2]  # torch takes a dimension of 1 for a constant
    try:
        _exported(model, batch, path, ({0: torch.export.Dim('batch')},))
        return True
    except Exception as error:  # the exporter's errors have no class in common
        _logger.warning('the network is exported for one picture at a time, since it does not export for any number: '
                        '%s', str(error).strip().partition('\n')[0])
    try:
        _exported(model, x[:1], path, None)
    except Exception as error:
        raise ValueError(f'the network cannot be exported: {error}') from error
    return False


def _exported(model: nn.Module, x: Tensor, path: Path, shapes: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch's exporter about itself
        torch.onnx.export(
            model.eval(), (x,), str(path), input_names=['images'], output_names=['logits'], dynamo=True,
            dynamic_shapes=shapes, external_data=False, verbose=False)


def _logits(session: Any) -> Callable[[Tensor], Tensor]:
    """The function that a session of ONNX Runtime computes; a file for one picture is run for each."""
    takes_any = not isinstance(session.get_inputs()[0].shape[0], int)

    def logits(x: Tensor) -> Tensor:
        parts = [x] if takes_any else x.split(1)
        return torch.from_numpy(np.concatenate([session.run(None, {'images': part.numpy()})[0] for part in parts]))
    return logits


def open_onnx(file: str | Path) -> Classifier:
    """Open a file of :func:`export_onnx` with ONNX Runtime, on the CPU; the network's package is not needed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or does not say what its pictures need.
    """
    session, description = open_onnx_file(file, CLASSIFIER)
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in description.items()
              if key in _DESCRIBED}
    return Classifier(_logits(session), config, description['label_names'],
                      description.get('problem_type') == MULTILABEL, description.get('upright', True))
