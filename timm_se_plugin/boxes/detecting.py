"""Boxes in pictures, by any detector, and the files that hold them."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..files.counting import counted
from ..files.pictures import Picture, readable, reason, search
from ..files.tables import write_table
from ..files.writing import write_atomically
from .drawing import draw, takes_colours, write_picture

__all__ = ['Detector', 'Found', 'detect', 'found_in', 'pictures_to_detect_in']

_logger = logging.getLogger(__name__)
_COLUMNS = ('file', 'label', 'score', 'x1', 'y1', 'x2', 'y2')


@dataclass(frozen=True)
class Found:
    """What a detector finds in a picture.

    Args:
        boxes: (N, 4), corners x1, y1, x2, y2 in pixels of the picture.
        scores: (N,).
        labels: (N,), numbers of the classes.
        masks: (N, H, W), the pixels of each object, if the detector finds them.
        highest: the highest score, also of a box that is left out because its score is too low.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    highest: float = 0.0


@dataclass(frozen=True)
class Detector:
    """A detector with all that a picture needs.

    Args:
        find: maps a picture, (H, W, 3), BGR, 8 bits, and the lowest score to what is found with at least that score.
        names: of the classes, by their numbers; a class without a name is called by its number.
        upright: whether pictures are turned as their EXIF orientation says.
    """

    find: Callable[[np.ndarray, float], Found]
    names: Sequence[str]
    upright: bool = True

    def pictures(self, files: Iterable[str | Path]) -> Any:
        """The files that are whole pictures, each with its pixels as `find` takes them; the log names the others."""
        return readable(files, Picture('RGB', self.upright), lambda image: np.asarray(image)[..., ::-1])


def pictures_to_detect_in(pictures: Iterable[str | Path], output: str | Path) -> dict[Path, Path]:
    """The pictures in files and folders, each with the file that the picture with its boxes is written to.

    Raises:
        FileNotFoundError: a picture does not exist, or a folder has none.
        ValueError: a picture would be written over a given one or another result.
    """
    files: dict[Path, Path] = {}
    for file, name in search(pictures, Path(output)):
        target = Path(output, name if takes_colours(name) else f'{name}.png')
        other = files.setdefault(target, file)
        if other is not file and other.resolve() != file.resolve():
            raise ValueError(f'{file} and {other} would be written to one file, {target}; give them in two commands '
                             'with two folders for --output')
    if {file.resolve() for file in files.values()} & {target.resolve() for target in files}:
        raise ValueError(f'output={str(output)!r} holds the pictures, which would be overwritten; give another folder')
    return {file: target for target, file in files.items()}


def detect(detector: Detector, targets: dict[Path, Path], output: str | Path, score: float = 0.3,
           ) -> list[dict[str, Any]]:
    """Detect in pictures, and write each with its boxes, and all boxes into ``detections.json`` and ``detections.csv``.

    A picture that cannot be read or detected in is named in the log and passed over. The two files are written whatever
    happens, with the results of the pictures until then.

    Args:
        detector: the detector.
        targets: of :func:`pictures_to_detect_in`.
        output: the folder for the two files.
        score: the lowest score of a box that is kept.

    Returns:
        The content of ``detections.json``: for each picture ``file`` and ``detections``, a list of ``label``,
        ``score``, ``bbox`` (x1, y1, x2, y2 in pixels), and, of a detector that finds masks, ``segmentation``
        (polygons as in COCO's annotations, along the edges of the pixels; a hole is not told).

    Raises:
        ValueError: a picture cannot be written, or there is none that can be detected in.
    """
    results: list[dict[str, Any]] = []
    highest = 0.0
    try:
        for file, picture in detector.pictures(targets):
            try:
                found = detector.find(picture, score)
            except MemoryError:
                raise
            except Exception as error:  # PyTorch and ONNX Runtime raise errors of many classes
                _logger.warning('%s, of %dx%d pixels, cannot be detected in (%s); it is passed over', file,
                                picture.shape[1], picture.shape[0], reason(error))
                continue
            highest = max(highest, found.highest)
            results.append({'file': str(file), 'detections': found_in(found, detector.names)})
            _write(picture, results[-1]['detections'], targets[Path(file)], detector.names)
    finally:
        if results:
            _write_results(results, Path(output))
    if not results:
        raise ValueError(f'of {counted(len(targets), "file")}, none is a picture that can be detected in')
    if not any(result['detections'] for result in results):
        below = math.floor(10_000 * highest) / 10_000  # a score that is not above that of the box
        _logger.warning('no picture has a box with a score of %g or more; %s', score, (
            f'the highest score of a box is {below:g}, and a lower --score keeps such boxes' if highest else
            'the detector gives no box with a lower score either'))
    return results


def found_in(found: Found, names: Sequence[str]) -> list[dict[str, Any]]:
    """What is found in a picture as JSON-safe values."""
    detections = []
    for i, (box, score, label) in enumerate(
            zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)):
        detections.append({'label': names[label] if label < len(names) else str(label), 'score': round(score, 4),
                           'bbox': [round(v, 2) for v in box]})
        if found.masks is not None:
            detections[-1]['segmentation'] = _outlines(found.masks[i])
    return detections


def _outlines(mask: np.ndarray) -> list[list[int]]:
    """Outlines of the parts of a mask (H, W), each (x, y, x, y, …) along the edges of its pixels, as in COCO."""
    # OpenCV's outlines run through the middle of pixels. With each pixel doubled, the left one of an even and an odd
    # coordinate has the pixel's left edge, and the right one its right edge.
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    lines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [(line.reshape(-1, 2) + 1) // 2 for line in lines]
    return [points[(points != np.roll(points, 1, 0)).any(1)].reshape(-1).tolist() for points in outlines]


def _write(picture: np.ndarray, detections: Sequence[dict[str, Any]], target: Path, names: Sequence[str]) -> None:
    boxes, labels, scores = ([found[key] for found in detections] for key in ('bbox', 'label', 'score'))
    outlines = [[np.reshape(line, (-1, 2)) for line in found.get('segmentation', [])] for found in detections]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_picture(target, draw(picture, boxes, labels, scores, names, outlines))


def _write_results(results: Sequence[dict[str, Any]], folder: Path) -> None:
    write_atomically(folder / 'detections.json', json.dumps(results, indent=1, ensure_ascii=False).encode(
        errors='backslashreplace'))  # JSON's own escape of bytes in names that are not UTF-8
    write_table(folder / 'detections.csv', (
        dict(zip(_COLUMNS, (result['file'], found['label'], found['score'], *found['bbox']), strict=True))
        for result in results for found in result['detections']), _COLUMNS)
