"""Reads YOLO's annotations: a text file for each picture, and a YAML file that names the classes and the splits."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ..files.pictures import orientation_in_header, with_slashes
from .conversion import AnnotatedPicture, Box, read_each, within

__all__ = ['is_yolo', 'read_yolo']

_logger = logging.getLogger(__name__)


def is_yolo(file: Path) -> bool:
    """Whether a file is a YAML file that has the keys ``names``, and ``train`` or ``val``.

    Raises:
        ValueError: a file called data or dataset is not YAML.
    """
    if file.suffix.lower() not in ('.yaml', '.yml'):
        return False
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8-sig'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        if file.stem.lower() in ('data', 'dataset'):
            raise ValueError(f'{file} is not a YAML file: {error}; correct the file') from error
        return False
    return isinstance(content, dict) and 'names' in content and bool({'train', 'val'} & content.keys())


def read_yolo(file: Path, endings: Iterable[str]) -> tuple[dict[str, list[AnnotatedPicture]], list[str]]:
    """Read the pictures and labels that a YAML file describes.

    The labels of ``images/a.jpg`` are in ``labels/a.txt``, or else in ``images/a.txt``. Each line is the number of a
    class, and either the centre, the width and the height of a box or the points of an outline, as fractions of the
    width and height of the picture. A picture without labels has no objects. Where the YAML file has ``kpt_shape``,
    a line is a box and the keypoints of a pose, which are passed over.

    Args:
        file: the YAML file, with ``names``, ``train``, ``val`` and ``test``, and optionally ``path``, their folder.
        endings: endings of picture files.

    Returns:
        The pictures of each split, and the names of the classes.

    Raises:
        FileNotFoundError: the folder of train or val does not exist.
        ValueError: the names are not a list; there are no labels; a line has a class without a name, a number that
            is not a fraction, or a box outside the picture.
    """
    content = yaml.safe_load(file.read_text(encoding='utf-8-sig'))
    names = content['names']
    if isinstance(names, Mapping) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [names[key] for key in sorted(names, key=int)]  # some programs write the numbers as text
    if not isinstance(names, list) or not names:
        raise ValueError(f'{file}: names={names!r} does not name the classes 0, 1, 2, …; write a list, names: [cat, '
                         'dog], in the order of the numbers in the labels')
    classes = [str(name) for name in names]
    if len(set(classes)) < len(classes):
        raise ValueError(f'{file}: names={classes} has a name more than once; give each class a name of its own')
    read = 5 if 'kpt_shape' in content else None  # numbers of a line
    splits = {}
    for split in ('train', 'val', 'test'):
        pictures = [picture for place in _listed(content.get(split)) for picture in _pictures(
            file, content.get('path'), place, split, tuple(endings))]
        if pictures:
            splits[split] = read_each(pictures, lambda picture: _annotated(picture, classes, file, read))
    if not any(picture.boxes for pictures in splits.values() for picture in pictures):
        first = next((picture.path for pictures in splits.values() for picture in pictures), None)
        raise ValueError(f'{file}: ' + (f'no picture has a label; those of {first} were looked for in '
                                        f'{" and ".join(map(str, _labels(first)))}' if first else
                                        'the folders of train, val and test hold no pictures'))
    return splits, classes


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _pictures(file: Path, base: Any, place: Any, split: str, endings: tuple[str, ...]) -> list[Path]:
    """The pictures of a folder without hidden ones, or those that a text file lists."""
    base, place = with_slashes(str(base or '')), with_slashes(str(place))
    # Roboflow writes ../train/images for the folder train/images beside the file.
    candidates = [*([file.parent / base / place] if base else []), file.parent / place,
                  file.parent / place.removeprefix('../')]
    found = next((path for path in candidates if path.exists()), None)
    if found is None and split == 'test':  # Roboflow names a test split even if there is none
        _logger.warning('%s: test: %s does not exist, and is left out', file, place)
        return []
    if found is None:
        raise FileNotFoundError(f'{file}: {split}: {place} does not exist; looked for '
                                f'{" and ".join(dict.fromkeys(map(str, candidates)))}; correct {split} or path in the '
                                'file')
    if found.is_dir():
        return sorted(path for path in found.rglob('*') if path.suffix.lower() in endings and not any(
            part.startswith('.') for part in path.relative_to(found).parts))
    lines = [with_slashes(line.strip()) for line in found.read_text(encoding='utf-8-sig').splitlines()]
    # The paths are relative to the list, or to the folder of the data.
    folders = (found.parent, file.parent / base, file.parent)
    return [next((folder / line for folder in folders if (folder / line).is_file()), found.parent / line)
            for line in lines if line]


def _labels(picture: Path) -> list[Path]:
    """The files in which the labels of a picture may be."""
    parts = list(picture.parts)
    beside = picture.with_suffix('.txt')
    if 'images' not in parts:
        return [beside]
    last = len(parts) - 1 - parts[::-1].index('images')
    return [Path(*parts[:last], 'labels', *parts[last + 1:]).with_suffix('.txt'), beside]


def _annotated(picture: Path, classes: Sequence[str], names: Path, read: int | None) -> AnnotatedPicture:
    try:
        with Image.open(picture) as opened:
            size = opened.size
            if orientation_in_header(opened) in range(5, 9):
                size = size[::-1]
    except OSError as error:
        raise ValueError(f'{picture} cannot be read: {error}; replace the picture, or remove it') from error
    labels = next((path for path in _labels(picture) if path.is_file()), None)
    lines = labels.read_text(encoding='utf-8-sig').splitlines() if labels else []
    boxes = [_box(line.split()[:read], size, classes, f'{labels}, line {number}', names)
             for number, line in enumerate(lines, start=1) if line.strip()]
    return AnnotatedPicture(picture, size, boxes)


def _box(words: Sequence[str], size: tuple[int, int], classes: Sequence[str], where: str, names: Path) -> Box:
    try:
        label, *values = map(float, words)
    except ValueError:
        raise ValueError(f'{where}: {" ".join(words)!r} has to be a class, x, y, width and height, all of them numbers'
                         ) from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f'{where} has {len(words)} numbers; a box has 5, a class and x, y, width and height, and an '
                         'outline has a class and two numbers for each of at least three points')
    if label not in range(len(classes)):
        raise ValueError(f'{where} has the class {label:g}, and {names} names the classes 0 to {len(classes) - 1}; add '
                         'the name of the class, or correct the line')
    if not all(0 <= value <= 1.01 for value in values):  # 1.01 allows for rounding
        raise ValueError(f'{where}: {" ".join(words[1:])} are not fractions of the width and height of the picture, '
                         f'from 0 to 1; divide pixels by the size of the picture, {size[0]}x{size[1]}')
    scaled = [value * size[i % 2] for i, value in enumerate(values)]
    if len(values) == 4:
        x, y, width, height = scaled
        polygon: tuple[float, ...] = ()
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        polygon = tuple(scaled)
        corners = (min(scaled[::2]), min(scaled[1::2]), max(scaled[::2]), max(scaled[1::2]))
    return Box(classes[int(label)], within(corners, size, where), polygon)
