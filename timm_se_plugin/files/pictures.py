"""Picture files of any kind that Pillow reads: found in folders, and read upright, with 8 bits for each pixel."""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

__all__ = [
    'Picture', 'orientation_in_header', 'original_name', 'picture_endings', 'pictures_of', 'readable', 'reason',
    'search', 'walk', 'with_slashes']

_logger = logging.getLogger(__name__)
_Read = TypeVar('_Read')
_IDENTIFIED_ALONE = ('BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF')  # Pillow does not read the pixels of these by itself

# What sets a picture upright, by its EXIF orientation; 1 is upright.
_TURNS = dict(zip(range(2, 9), (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90),
    strict=True))


def original_name(name: str) -> str:
    """The name that the augmented variants of one picture share.

    Roboflow writes ``cat_jpg.rf.<key>.jpg`` for each variant of ``cat.jpg``. Any other name is returned as it is.
    """
    return re.sub(r'\.rf\.[0-9A-Za-z]+(?=\.\w+$)', '', name)


def with_slashes(path: str) -> str:
    """The path, in which backslashes, as programs write them on Windows, are slashes."""
    return path.replace('\\', '/')


@dataclass(frozen=True)
class Picture:
    """Turns an image of Pillow's into what a network sees: upright, with 8 bits for each pixel, in one mode.

    Args:
        mode: Pillow's name of the mode, ``'RGB'`` or ``'L'``.
        upright: whether the EXIF orientation is applied, as viewers do.
    """

    mode: str
    upright: bool = True

    @classmethod
    def of(cls, channels: int, upright: bool) -> 'Picture':
        """For networks with this number of input channels.

        Raises:
            ValueError: pictures have no mode with so many channels.
        """
        modes = {1: 'L', 3: 'RGB', 4: 'RGBA'}
        if channels not in modes:
            raise ValueError(f'the network takes {channels} channels, and pictures are read with 1, 3 or 4')
        return cls(modes[channels], upright)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image in the mode.

        Raises:
            ValueError: the pixels are fractions or integers of more than 16 bits, whose range is unknown.
        """
        image.load()  # after which a TIFF is upright already and says so
        turn = _TURNS.get(_orientation(image)) if self.upright else None
        image = _eight_bits(image)
        image = image.convert('RGB') if image.mode == 'LAB' else image  # Pillow converts this mode to no other
        return (image if turn is None else image.transpose(turn)).convert(self.mode)


def orientation_in_header(image: Image.Image) -> int:
    """EXIF orientation of an opened picture, 1 to 8, without decoding the pixels; 5 to 8 swap width and height."""
    # For a PNG file without EXIF, getexif would decode the file to look for the tag at its end.
    return _orientation(image) if 'exif' in image.info or image.format == 'TIFF' else 1


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF data make Pillow raise exceptions of many classes; viewers show such pictures
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, with its upper 8 bits alone if it has 16: Pillow's own conversion clips instead."""
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        extremes: Any = image.getextrema()
        low, high = extremes
        if low < 0 or high > 255 or (image.mode == 'F' and 0 < high <= 1):
            raise ValueError(f'its pixels are numbers from {low:g} to {high:g} in mode {image.mode}, of which nobody '
                             'says what black and white are; save it with 8 or 16 bits')
    return image


def picture_endings() -> set[str]:
    """Endings of the files that Pillow reads, such as ``.webp``."""
    return {ending for ending, kind in Image.registered_extensions().items()
            if kind in Image.OPEN and kind not in _IDENTIFIED_ALONE}


def walk(
        root: str | Path, onerror: Callable[[OSError], object] | None = None,
) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` through links as well, except those to a folder that they lie in, which are logged: they never end.

    Args:
        root: where to begin.
        onerror: receives an error of a folder that cannot be listed, which is passed over otherwise.

    Returns:
        As ``os.walk``: a folder, and the names of the folders in it, which the caller may reduce, and of the files.
    """
    ways: dict[str, set[Path]] = {}
    for folder, folders, files in os.walk(root, onerror=onerror, followlinks=True):
        real = Path(folder).resolve()
        way = {real, *real.parents, *ways.pop(folder, ())}
        for path in [path for name in folders if (path := Path(folder, name)).is_symlink()]:
            if path.resolve() in way:
                _logger.warning('%s links to a folder that it lies in, and is not followed', path)
                folders.remove(path.name)
        yield folder, folders, files
        ways |= {os.path.join(folder, name): way for name in folders}


def search(paths: Iterable[str | Path], but: Path | None = None) -> list[tuple[Path, Path]]:
    """Files as they are given, and of a folder the pictures in it and below it, sorted; each with a relative name.

    A file of a folder is a picture if Pillow reads files of its ending, or, where it has no ending, this file. What is
    hidden is passed over, and the log counts the other files.

    Args:
        paths: files and folders.
        but: a folder that is passed over where it lies in one of the others.

    Returns:
        For each picture its path, and its path from the given folder on, or its name.

    Raises:
        FileNotFoundError: a path does not exist, or there is no picture.
    """
    given, found, others = [Path(path) for path in paths], [], Counter[str]()
    for path in given:
        if path.is_file():
            found.append((path, Path(path.name)))
        elif not path.is_dir():
            raise FileNotFoundError(f'there is no file or folder {path}')
        else:
            inside, others_here = _inside(path, but)
            found += inside
            others += others_here
    if others:
        kinds = ', '.join(f'{count} {kind}' for kind, count in others.most_common(8))
        _logger.warning('left out, since no pictures: %s%s', kinds, ', …' if len(others) > 8 else '')
    if not found:
        raise FileNotFoundError(f'there are no pictures in {", ".join(map(str, given))}')
    return found


def _inside(path: Path, but: Path | None) -> tuple[list[tuple[Path, Path]], Counter[str]]:
    """The pictures in a folder as in :func:`search`, and the number of other files by their ending."""
    found, others = [], Counter[str]()
    for folder, folders, files in walk(path):
        folders[:] = [name for name in folders if not name.startswith('.') and not (
            but is not None and Path(folder, name).resolve() == but.resolve())]
        for file in (Path(folder, name) for name in files if not name.startswith('.')):
            if _is_picture(file):
                found.append((file, file.relative_to(path)))
            else:
                others[file.suffix.lower() or file.name] += 1
    return sorted(found), others


def pictures_of(paths: Iterable[str | Path]) -> list[Path]:
    """The pictures that :func:`search` finds."""
    return [file for file, _ in search(paths)]


def _is_picture(file: Path) -> bool:
    if file.suffix:
        return file.suffix.lower() in picture_endings()
    try:
        with Image.open(file):
            return True
    except Exception:  # a file of another kind makes Pillow raise exceptions of many classes
        return False


def reason(error: Exception) -> str:
    """What an error about a picture says, in one line."""
    if getattr(error, 'err', None) == 'inv_scale_x > 0':  # OpenCV's words
        return 'it is so narrow that resizing leaves nothing of it'
    return f'{type(error).__name__}: {" ".join(str(error).split())}'


def readable(
        files: Iterable[str | Path], picture: Picture, transform: Callable[[Image.Image], _Read],
) -> Iterator[tuple[str | Path, _Read]]:
    """The files that are whole pictures, each with what the transform makes of it; the log names the others."""
    for file in files:
        try:
            with Image.open(file) as image:
                yield file, transform(picture(image))
        except MemoryError:
            raise
        except Exception as error:  # a broken file makes Pillow raise exceptions of many classes
            _logger.warning('%s cannot be read (%s); it is passed over', file, error)
