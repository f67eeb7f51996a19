"""Annotated pictures of any format as the content of a file in COCO's format."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

__all__ = ['AnnotatedPicture', 'Box', 'read_each', 'to_coco']

_logger = logging.getLogger(__name__)

_File = TypeVar('_File')
_Read = TypeVar('_Read')
_LOGGED = 100  # messages on further files that are refused
_ROUNDING = 1  # pixels that a box may reach beyond its picture


class Box(NamedTuple):
    """A box of an object.

    Args:
        label: name of the class.
        corners: left, top, right and bottom in pixels from the left and the top edge of the picture.
        polygon: outline of the object, x and y of each point in pixels; empty if there is none.
        is_crowd: COCO's ``iscrowd``: whether detections of the object count as neither right nor wrong.
    """

    label: str
    corners: tuple[float, float, float, float]
    polygon: tuple[float, ...] = ()
    is_crowd: bool = False


class AnnotatedPicture(NamedTuple):
    """A picture file, its width and height in pixels as it is loaded, and its boxes."""

    path: Path
    size: tuple[int, int]
    boxes: list[Box]


def read_each(files: Iterable[_File], read: Callable[[_File], _Read]) -> list[_Read]:
    """Read several files with a function.

    Raises:
        ValueError: the function refuses files; the message is that of the first file, with the number of the others,
            whose messages are logged, up to 100 of them.
    """
    contents, refused = [], []
    for file in files:
        try:
            contents.append(read(file))
        except ValueError as error:
            refused.append(str(error))
    for message in refused[1:_LOGGED + 1]:
        _logger.warning('%s', message)
    if refused:
        raise ValueError(refused[0] + (f'. {len(refused) - 1} more files are refused too, as the log says'
                                       if len(refused) > 1 else ''))
    return contents


def within(corners: Sequence[float], size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    """The corners of a box, clipped to the picture; rounding may have moved them beyond by a pixel at most.

    Raises:
        ValueError: the box reaches further beyond, or its right or lower edge comes before the left or upper edge.
    """
    x1, y1, x2, y2 = corners
    width, height = size
    if not (-_ROUNDING <= x1 <= x2 <= width + _ROUNDING and -_ROUNDING <= y1 <= y2 <= height + _ROUNDING):
        raise ValueError(f'{where}: the box from x={x1:g}, y={y1:g} to x={x2:g}, y={y2:g} does not lie in the picture '
                         f'of {width}x{height} pixels (width x height); correct the box, or remove it')
    return max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)


def to_coco(pictures: Iterable[AnnotatedPicture], classes: Sequence[str], root: Path) -> dict[str, Any]:
    """The content of a file in COCO's format.

    Args:
        pictures: pictures with their boxes.
        classes: names of all classes.
        root: folder to which the names of the files are relative.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for id_, picture in enumerate(pictures, start=1):
        file_name = picture.path.relative_to(root) if picture.path.is_relative_to(root) else picture.path
        images.append({'id': id_, 'file_name': file_name.as_posix(), 'width': picture.size[0],
                       'height': picture.size[1]})
        for box in picture.boxes:
            x1, y1, x2, y2 = box.corners
            area = _area(box.polygon) if box.polygon else (x2 - x1) * (y2 - y1)
            annotations.append({
                'id': len(annotations) + 1, 'image_id': id_, 'category_id': classes.index(box.label) + 1,
                'bbox': [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                'area': round(area, 2), 'iscrowd': int(box.is_crowd),
                **({'segmentation': [[round(value, 2) for value in box.polygon]]} if box.polygon else {})})
    return {'images': images, 'annotations': annotations,
            'categories': [{'id': i, 'name': name} for i, name in enumerate(classes, start=1)]}


def _area(polygon: Sequence[float]) -> float:
    """Area inside an outline, (x, y, x, y, …), in square pixels, by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(x * (after - before) for x, before, after in zip(
        xs, (*ys[-1:], *ys[:-1]), (*ys[1:], *ys[:1]), strict=True))) / 2
