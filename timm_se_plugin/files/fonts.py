"""Fonts that have the letters of a text."""

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import ImageFont

__all__ = ['drawable', 'font_for']

_logger = logging.getLogger(__name__)


def drawable(text: str) -> str:
    r"""The text with ``\udcXX`` for each byte that is not UTF-8, as old archives have; Pillow draws no such text."""
    return text.encode(errors='backslashreplace').decode()


def font_for(text: str, size: int) -> Any:
    """Pillow's font of the first file with ASCII and all characters of `text`: DejaVu Sans or a system font.

    DejaVu Sans comes with matplotlib. Without matplotlib, Pillow's own font is taken, which has ASCII alone.
    """
    return _font(frozenset(character for character in text if not character.isascii()), size)


def _fonts() -> Iterator[str]:
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    yield str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))
    yield from sorted(findSystemFonts())


@functools.cache
def _font(characters: frozenset[str], size: int) -> Any:
    lacking = 'install a font that has them, such as Noto Sans CJK'
    try:
        from matplotlib.ft2font import FT2Font
    except ModuleNotFoundError:
        found, lacking = ImageFont.load_default(size), 'install matplotlib, which brings a font with many alphabets'
    else:
        codes = {*range(32, 127), *map(ord, characters)}
        for path in _fonts():
            try:
                if codes <= FT2Font(path).get_charmap().keys():
                    return ImageFont.truetype(path, size)
            except (RuntimeError, OSError):
                continue  # matplotlib or Pillow does not read this font
        found = ImageFont.truetype(next(_fonts()), size)
    if characters:
        _logger.warning('no installed font has all of the characters %r, and some are drawn as empty boxes; %s',
                        ''.join(sorted(characters)), lacking)
    return found
