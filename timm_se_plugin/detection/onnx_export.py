"""A detector of MMDetection as an ONNX file that needs no MMDetection, checked on pictures before it is written."""

import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.utils import get_test_pipeline_cfg

from ..boxes.detecting import Detector, Found
from ..boxes.onnx_detector import session_detector
from ..files.counting import counted
from ..files.onnx_files import DETECTOR, described, onnx_session
from ..files.packages import require
from ..files.pictures import pictures_of
from ..files.writing import write_atomically
from ..weights.mm_config import type_name
from .inference import detector_of, is_upright
from .onnx_network import ExportedDetector

__all__ = ['DetectorExport', 'export_detector']

_OPSET = 17  # RoIAlign is that of MMDetection from opset 16 on
_SCORE, _BOX, _MASK = 1e-3, 0.5, 0.01  # tolerances: of a score; in pixels; share of an object's pixels
_UNMATCHED = 0.01  # share of the boxes, since NMS decides by a rounding error where an overlap is at its threshold


@dataclass(frozen=True)
class DetectorExport:
    """What was written and how it was checked.

    Args:
        file: the ONNX file.
        bytes: its size.
        pictures: number of pictures that PyTorch and ONNX Runtime have compared.
        boxes: number of boxes that PyTorch found in them.
        unmatched: how many boxes only one of the two found.
        largest_score_difference: of a box between the two.
        largest_box_difference: of a corner between the two, in pixels.
    """

    file: str
    bytes: int
    pictures: int
    boxes: int
    unmatched: int
    largest_score_difference: float
    largest_box_difference: float


def export_detector(detector: Any, file: str | Path, pictures: Iterable[str | Path], most: int = 8) -> DetectorExport:
    """Write a detector as an ONNX file, after ONNX Runtime has found in pictures what MMDetection finds.

    The file takes ``images``, (N, 3, H, W) in float32: any number of pictures of one size, any size. It gives
    ``boxes``, ``scores``, ``labels``, and of a Mask R-CNN ``masks``, as :class:`~.onnx_network.ExportedDetector` says.
    Padding, NMS and RoIAlign are in the file. Its metadata have an entry ``timm_se_plugin``, JSON:

    - ``task``, ``detector``, ``label_names``, ``version``;
    - what is done before: ``upright`` (whether the EXIF orientation is applied), ``resize`` ([w, h], or null) with
      ``keep_ratio`` (the largest size that fits) and ``interpolation``, ``channel_order``, ``mean`` and ``std`` of
      pixels from 0 to 1; ``pad_size_divisor`` and ``pad_value``, which the file itself pads with at the right and the
      bottom;
    - what is done behind: ``score_threshold`` (boxes have at least that score), ``boxes_per_picture``, and
      ``mask_threshold``.

    Args:
        detector: a detector of MMDetection with ``cfg`` and ``dataset_meta``, on the CPU.
        file: the file to write.
        pictures: picture files and folders to check it on.
        most: pictures that are compared at most.

    Raises:
        ValueError: the two differ, they find nothing to compare, there is no readable picture, or the detector or its
            test pipeline is of a kind that is not exported.
        FileNotFoundError: there is no picture.
        ModuleNotFoundError: the [export] extra is not installed.
    """
    require('export', 'onnx', 'onnxruntime')
    network, description = ExportedDetector(detector).eval(), _description(detector)
    inside = detector_of(detector)
    looked = [picture for _, picture in islice(inside.pictures(pictures_of(pictures)), most)]
    if not looked:
        raise ValueError('none of the pictures to check the file on can be read')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model.onnx')
        _write(network, path)
        content = described(path, DETECTOR, description)
    compared = _compared(inside, session_detector(onnx_session(content), description), looked, str(file))
    write_atomically(Path(file), content)
    return DetectorExport(str(file), len(content), len(looked), *compared)


def _write(network: ExportedDetector, path: Path) -> None:
    axes = {'images': {0: 'batch', 2: 'height', 3: 'width'}, **{name: {0: 'batch'} for name in network.outputs}}
    example = torch.rand(2, 3, 96, 128)  # two, of two sides: torch may take a number that occurs twice for one
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch's exporter about itself and about constants, which are meant
        # The other exporter, dynamo=True, follows no operator whose number of results depends on values, as NMS.
        torch.onnx.export(network, (example,), str(path), input_names=['images'], output_names=network.outputs,
                          dynamic_axes=axes, opset_version=_OPSET, dynamo=False)


def _description(detector: Any) -> dict[str, Any]:
    """What the file's metadata say of the detector; its test pipeline has to be of steps that they can say."""
    steps = {type_name(step): step for step in get_test_pipeline_cfg(detector.cfg)}
    unknown = steps.keys() - {'LoadImageFromFile', 'LoadImageFromNDArray', 'Resize', 'LoadAnnotations', 'PackDetInputs'}
    resize = steps.get('Resize', {})
    if unknown or (resize and ('scale' not in resize or resize.get('interpolation', 'bilinear') != 'bilinear')):
        raise ValueError(f'the test pipeline has {", ".join(sorted(unknown)) or resize}, and only LoadImageFromFile, a '
                         'bilinear Resize with a scale, LoadAnnotations and PackDetInputs can be described in an ONNX '
                         'file')
    load, prepare = next(iter(steps.values())), detector.data_preprocessor
    size = resize.get('scale')
    mean, std = (getattr(prepare, name).flatten().tolist() if hasattr(prepare, name) else [default] * 3
                 for name, default in (('mean', 0.), ('std', 1.)))
    head = detector.roi_head if hasattr(detector, 'roi_head') else detector.bbox_head
    swaps = getattr(prepare, '_channel_conversion', False)
    return {
        'detector': type(detector).__name__,
        'label_names': [str(name) for name in detector.dataset_meta.get('classes', [])],
        'upright': is_upright(load),
        'resize': [size, size] if isinstance(size, int) else size and list(size),
        'keep_ratio': resize.get('keep_ratio', False),
        'interpolation': 'bilinear', 'channel_order': 'RGB' if swaps else 'BGR',
        'mean': [value / 255 for value in mean], 'std': [value / 255 for value in std],
        'pad_size_divisor': prepare.pad_size_divisor, 'pad_value': prepare.pad_value,
        'score_threshold': head.test_cfg.score_thr, 'boxes_per_picture': head.test_cfg.max_per_img,
        'mask_threshold': head.test_cfg.get('mask_thr_binary'),
    }


def _compared(
        detector: Detector, exported: Detector, pictures: Sequence[np.ndarray], file: str,
) -> tuple[int, int, float, float]:
    """Compare what MMDetection and ONNX Runtime find; returns the last four values of :class:`DetectorExport`.

    Raises:
        ValueError: they differ, or find nothing.
    """
    boxes = unmatched = 0
    largest = np.zeros(2)
    for picture in pictures:
        expected, found = detector.find(picture, 0.), exported.find(picture, 0.)
        pairs = _pairs(expected, found)
        boxes += len(expected.scores)
        unmatched += len(expected.scores) + len(found.scores) - 2 * len(pairs)
        for i, j in pairs:
            differences = abs(expected.scores[i] - found.scores[j]), np.abs(expected.boxes[i] - found.boxes[j]).max()
            largest = np.maximum(largest, differences)
    if not boxes:
        raise ValueError(f'{file} is not written, since it cannot be checked: the detector finds nothing in '
                         f'{counted(len(pictures), "picture")}; give pictures of what it was trained on')
    if unmatched > _UNMATCHED * 2 * boxes:
        raise ValueError(f'{file} is not written: in {counted(len(pictures), "picture")} MMDetection finds '
                         f'{counted(boxes, "box", "boxes")}, and {counted(unmatched, "box is", "boxes are")} found '
                         'by MMDetection or by ONNX Runtime only')
    return boxes, unmatched, float(largest[0]), float(largest[1])


def _pairs(expected: Found, found: Found) -> list[tuple[int, int]]:
    """The boxes of both that agree in the label and, within the tolerances, in corners, score and mask."""
    pairs, free = [], np.ones(len(found.scores), bool)
    for i, (box, score, label) in enumerate(zip(expected.boxes, expected.scores, expected.labels, strict=True)):
        distance = np.abs(found.boxes - box).max(1)
        fits = free & (found.labels == label) & (np.abs(found.scores - score) < _SCORE) & (distance < _BOX)
        if not fits.any():
            continue
        j = int(np.where(fits, distance, np.inf).argmin())
        if expected.masks is not None and found.masks is not None:
            differ = expected.masks[i] != found.masks[j]
            if differ.sum() > max(_MASK * expected.masks[i].sum(), 2):
                continue
        free[j] = False
        pairs.append((i, j))
    return pairs
