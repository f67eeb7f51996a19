"""A classifier's ONNX file in 8-bit integers, by ONNX Runtime's static quantisation, and what that costs."""

import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.onnx_files import CLASSIFIER, described, int8_file, open_onnx_file
from ..files.packages import require
from ..files.pictures import pictures_of
from ..files.writing import write_atomically
from .folders import class_key
from .onnx_file import open_onnx
from .prediction import Classifier, predict

__all__ = ['Int8', 'write_int8']


@dataclass(frozen=True)
class Int8:
    """What was written, and how it compares with the file in float32.

    Args:
        file: the ONNX file in 8-bit integers.
        bytes: its size.
        calibration: number of pictures that the ranges of the activations were measured on.
        pictures: number of pictures that both files have classified.
        same: share of them whose best class is the same; for a network of any number of labels, share of all their
            labels that are on the same side of a probability of 0.5.
        top1_float: share of them that the file in float32 classifies right; None for a network of any number of labels,
            and if the pictures do not lie in folders with the names of the classes.
        top1_int8: the same for the file in 8-bit integers.
    """

    file: str
    bytes: int
    calibration: int
    pictures: int
    same: float
    top1_float: float | None
    top1_int8: float | None


def write_int8(file: str | Path, calibration: Iterable[str | Path], pictures: Iterable[str | Path], most: int = 200,
               ) -> Int8:
    """Write a classifier's ONNX file again with weights and activations of 8 bits, beside it as ``NAME-int8.onnx``.

    Weights have a range for each output channel; an activation has one range, from its least to its greatest value on
    the calibration pictures.

    Args:
        file: the file of :func:`~.onnx_file.export_onnx`, which does not change.
        calibration: picture files and folders, of which `most` are taken, evenly spaced.
        pictures: picture files and folders that both files classify.
        most: number of calibration pictures.

    Raises:
        FileNotFoundError: there are no pictures.
        ModuleNotFoundError: the [export] extra is not installed.
        ValueError: no picture can be read.
    """
    require('export', 'onnx', 'onnxruntime')
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _, description = open_onnx_file(file, CLASSIFIER)
    classifier = open_onnx(file)
    images = _Images(classifier, calibration, most)
    loggers = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory() as folder:
        folded, small = Path(folder, 'folded.onnx'), Path(folder, 'small.onnx')
        try:
            loggers[0].setLevel(logging.ERROR)  # ONNX Runtime recommends the preparation that has just been done
            # The file has all shapes already, and the symbolic inference fails at ReduceMax with its axes as an input.
            quant_pre_process(str(file), str(folded), skip_symbolic_shape=True)
            quantize_static(str(folded), str(small), images, per_channel=True)
        finally:
            loggers[0].setLevel(loggers[1])
        content = described(small, CLASSIFIER, description)
    target = int8_file(file)
    write_atomically(target, content)
    files = pictures_of(pictures)
    top, threshold = (None, None) if classifier.is_multilabel else (1, 0.)  # all labels from 0.5 on, or the best class
    found, small_found = (
        {each.file: {name for name, _ in each.classes} for each in predict(network, files, top, threshold=threshold)}
        for network in (classifier, open_onnx(target)))
    shared = sorted(found.keys() & small_found.keys())
    if not shared:
        raise ValueError('none of the pictures to compare the two files on can be read')
    if classifier.is_multilabel:
        other = sum(len(found[file] ^ small_found[file]) for file in shared)
        return Int8(str(target), len(content), images.count, len(shared),
                    1 - other / (len(shared) * len(classifier.names)), None, None)
    truth = _truth(shared, classifier.names)
    right = [sum(each[file] == {truth[file]} for file in shared) / len(shared) if truth else None
             for each in (found, small_found)]
    same = sum(found[file] == small_found[file] for file in shared) / len(shared)
    return Int8(str(target), len(content), images.count, len(shared), same, *right)


def _truth(files: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The class of each picture by its folder; empty if the folders are not the classes.

    A network without names of classes numbers them in the order of the folders' names, as data sets of folders do.
    """
    folders = {file: Path(file).parent.name for file in files}
    if set(folders.values()) <= set(names):
        return folders
    numbers = [str(i) for i in range(len(names))]
    order = sorted(set(folders.values()), key=class_key)
    if list(names) == numbers and len(order) == len(numbers):
        return {file: str(order.index(folder)) for file, folder in folders.items()}
    return {}


class _Images:
    """The calibration pictures, one by one, as ONNX Runtime's ``CalibrationDataReader`` gives them."""

    def __init__(self, classifier: Classifier, paths: Iterable[str | Path], most: int) -> None:
        files = pictures_of(paths)
        count = min(most, len(files))
        chosen = [files[i * len(files) // count] for i in range(count)]
        self.images = classifier.images(chosen)
        self.count = 0

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        if image is None:
            if not self.count:
                raise ValueError('none of the pictures that give the ranges of the activations can be read')
            return None
        self.count += 1
        return {'images': image[1][None].numpy()}
