"""Fonts that have the letters of a text."""

import functools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import ImageFont

__all__ = ['drawable', 'font_for', 'save_figure']

_logger = logging.getLogger(__name__)


def drawable(text: str) -> str:
    r"""The text with ``\udcXX`` for each byte that is not UTF-8, as old archives have.

    Neither Pillow nor matplotlib draws such a byte.
    """
    return text.encode(errors='backslashreplace').decode()


def font_for(text: str, size: int) -> Any:
    """Pillow's font of the first file with ASCII and all characters of `text`: DejaVu Sans or a system font.

    DejaVu Sans comes with matplotlib. Without matplotlib, Pillow's own font is taken, which has ASCII alone.
    """
    return _font(_beyond_ascii(text), size)


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure of matplotlib's into an image file, each text in a font that has its characters.

    matplotlib by itself draws what DejaVu Sans lacks as empty boxes, whichever fonts are installed, and fails at a text
    that :func:`drawable` changes. The caller changes labels of ticks, which matplotlib keeps outside their texts.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text(drawable(text.get_text()))
        if characters := _beyond_ascii(text.get_text()):
            properties = text.get_fontproperties().copy()
            properties.set_file(_file(characters))
            text.set_fontproperties(properties)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from', UserWarning)  # the log has said so
        figure.savefig(path, dpi=110)


def _beyond_ascii(text: str) -> frozenset[str]:
    return frozenset(character for character in text if not character.isascii())


def _fonts() -> Iterator[str]:
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    yield str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))
    yield from sorted(findSystemFonts())


@functools.cache
def _font(characters: frozenset[str], size: int) -> Any:
    try:
        import matplotlib.ft2font  # noqa: F401
    except ModuleNotFoundError:
        _warn_of_boxes(characters, 'install matplotlib, which brings a font with many alphabets')
        return ImageFont.load_default(size)
    return ImageFont.truetype(_file(characters), size)


@functools.cache
def _file(characters: frozenset[str]) -> str:
    """The first font file with ASCII and these characters; if there is none, that of DejaVu Sans."""
    from matplotlib.ft2font import FT2Font

    codes = {*range(32, 127), *map(ord, characters)}
    for path in _fonts():
        try:
            if codes <= FT2Font(path).get_charmap().keys():
                ImageFont.truetype(path)
                return path
        except (RuntimeError, OSError):
            continue  # matplotlib or Pillow does not read this font
    _warn_of_boxes(characters, 'install a font that has them, such as Noto Sans CJK')
    return next(_fonts())


def _warn_of_boxes(characters: frozenset[str], advice: str) -> None:
    if characters:
        _logger.warning('no installed font has all of the characters %r, and some are drawn as empty boxes; %s',
                        ''.join(sorted(characters)), advice)
