"""Draws boxes and their names into pictures, and writes picture files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ..files.fonts import drawable, font_for

__all__ = ['check_ending', 'draw', 'takes_colours', 'write_picture']

_COLOURS = ((60, 60, 220), (200, 60, 90), (0, 160, 240), (60, 170, 60), (180, 0, 180), (190, 150, 0))  # BGR


def takes_colours(file: str | Path) -> bool:
    """Whether OpenCV writes pictures in colours, small ones too, into files with the ending of `file`."""
    ending = Path(file).suffix.lower()
    return cv2.haveImageWriter(f'a{ending}') and ending not in ('.pbm', '.pgm', '.pfm', '.jp2')


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
        text = ' '.join(drawable(label).split()) + (f' {scores[i]:.2f}' if len(scores) else '')
        font = font_for(text, 10)
        top = max(y1 - 12, 0)
        cv2.rectangle(out, (x1, top), (x1 + round(font.getlength(text)) + 1, top + 12), colour, cv2.FILLED)
        texts.append(((x1 + 1, top), text, font))
    canvas = Image.fromarray(out)  # in BGR order, which does not matter for white
    pen = ImageDraw.Draw(canvas)
    for place, text, font in texts:
        pen.text(place, text, fill=(255, 255, 255), font=font)
    return np.array(canvas)
