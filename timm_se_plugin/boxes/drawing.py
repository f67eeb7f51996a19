"""Draws boxes and their names into pictures, and writes picture files."""

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ['check_ending', 'draw', 'takes_colours', 'write_picture']

_logger = logging.getLogger(__name__)
_COLOURS = ((60, 60, 220), (200, 60, 90), (0, 160, 240), (60, 170, 60), (180, 0, 180), (190, 150, 0))  # BGR


def takes_colours(file: str | Path) -> bool:
    """Whether OpenCV writes pictures in colours into files with the ending of `file`."""
    ending = Path(file).suffix.lower()
    return cv2.haveImageWriter(f'a{ending}') and ending not in ('.pbm', '.pgm')


def check_ending(file: str | Path) -> None:
    """Refuse a file into which no picture in colours can be written, before the work that the picture comes from.

    Raises:
        ValueError: OpenCV does not write colours into files of this ending.
    """
    if not takes_colours(file):
        raise ValueError(f'{file} does not end like a picture in colours, such as {Path(file).stem or "pairs"}.png')


def write_picture(file: str | Path, picture: np.ndarray) -> None:
    """Write a picture in the format of the file's ending, whatever the characters of the path.

    Args:
        file: the file, which is replaced if it exists.
        picture: (H, W, 3), BGR.

    Raises:
        ValueError: OpenCV does not know the ending, or cannot write such a picture in this format.
        OSError: the file cannot be written.
    """
    try:  # cv2.imwrite gives no reason when it fails, and cannot write to every path on Windows
        done, data = cv2.imencode(Path(file).suffix, picture)
    except cv2.error as error:
        raise ValueError(f'{file} cannot be written: {error}') from error
    if not done:
        raise ValueError(f'{file} cannot be written: OpenCV does not encode a picture of shape {picture.shape} as '
                         f'{Path(file).suffix}')
    Path(file).write_bytes(data.tobytes())


def _fonts() -> Iterator[str]:
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    yield str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))
    yield from sorted(findSystemFonts())


@functools.cache
def _font(characters: frozenset[str]) -> ImageFont.FreeTypeFont:
    """The first font with ASCII and `characters`: DejaVu Sans, which comes with matplotlib, or a system font."""
    from matplotlib.ft2font import FT2Font

    codes = {*range(32, 127), *map(ord, characters)}
    for path in _fonts():
        try:
            if codes <= FT2Font(path).get_charmap().keys():
                return ImageFont.truetype(path, 10)
        except (RuntimeError, OSError):
            continue  # matplotlib or Pillow does not read this font
    _logger.warning('no installed font has all of the characters %r, and some are drawn as empty boxes; install a font '
                    'that has them, such as Noto Sans CJK', ''.join(sorted(characters)))
    return ImageFont.truetype(next(_fonts()), 10)


def draw(
        picture: np.ndarray, boxes: Iterable[Iterable[float]], labels: Sequence[str], scores: Sequence[float] = (),
        classes: Sequence[str] = (), outlines: Sequence[Sequence[np.ndarray]] = (),
) -> np.ndarray:
    """Draw boxes into a copy of a picture.

    Args:
        picture: (H, W, 3), BGR.
        boxes: (N, 4), corners x1, y1, x2, y2 in pixels.
        labels: the class of each box, in any script that an installed font has.
        scores: the score of each box, which is written beside the label; may be empty.
        classes: all classes, each of which keeps its colour from picture to picture; by default those in `labels`.
        outlines: of each box, the polygons that are drawn with it, each (P, 2), in pixels; may be empty.
    """
    out = np.ascontiguousarray(picture).copy()
    names = [*classes, *sorted(set(labels) - set(classes))]
    texts = []
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        colour = _COLOURS[names.index(label) % len(_COLOURS)]
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(out, (x1, y1), (x2, y2), colour, 1)
        for line in outlines[i] if len(outlines) else ():
            cv2.polylines(out, [line.round().astype(np.int32)], True, colour, 1)
        text = ' '.join(label.split()) + (f' {scores[i]:.2f}' if len(scores) else '')
        font = _font(frozenset(character for character in text if not character.isascii()))
        top = max(y1 - 12, 0)
        cv2.rectangle(out, (x1, top), (x1 + round(font.getlength(text)) + 1, top + 12), colour, cv2.FILLED)
        texts.append(((x1 + 1, top), text, font))
    canvas = Image.fromarray(out)  # in BGR order, which does not matter for white
    pen = ImageDraw.Draw(canvas)
    for place, text, font in texts:
        pen.text(place, text, fill=(255, 255, 255), font=font)
    return np.array(canvas)
