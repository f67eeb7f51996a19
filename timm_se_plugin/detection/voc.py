"""Reads Pascal VOC: an XML file for each picture, and text files that list the pictures of a split."""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ..files.pictures import with_slashes
from .conversion import AnnotatedPicture, Box, read_each, within

__all__ = ['is_voc', 'names_in_lists', 'read_voc', 'split_lists']


def is_voc(file: Path) -> bool:
    """Whether a file is an XML file with the element ``annotation`` near its start."""
    if file.suffix.lower() != '.xml':
        return False
    with file.open('rb') as opened:
        return re.search(rb'<annotation[\s>]', opened.read(1000)) is not None


def names_in_lists(file: Path) -> set[str]:
    """The names by which a list may mean an XML file: without its ending, alone and behind the folders around it.

    Where pictures lie in folders, a list may have ``day/1`` for ``Annotations/day/1.xml``.
    """
    parts = file.with_suffix('').parts
    return {'/'.join(parts[i:]) for i in range(len(parts))}


def split_lists(files: Sequence[Path]) -> dict[str, set[str]]:
    """The names of the pictures of each split, without their endings, as ``ImageSets/Main/<split>.txt`` list them.

    Args:
        files: all files of the folder.

    Raises:
        ValueError: two files list the pictures of one split.
    """
    found: dict[str, Path] = {}
    for file in files:
        if file.parts[-3:-1] == ('ImageSets', 'Main') and file.suffix == '.txt' and file.stem in (
                'train', 'val', 'test', 'trainval'):
            other = found.setdefault(file.stem, file)
            if other != file:
                raise ValueError(f'{other} and {file} both list the pictures of {file.stem}; give the folder that '
                                 'holds one of these two ImageSets')
    if 'train' in found:
        found.pop('trainval', None)
    names = set().union(*(names_in_lists(file) for file in files if file.suffix.lower() == '.xml'))
    return {'train' if name == 'trainval' else name: {
        _listed(line, names) for line in file.read_text(encoding='utf-8-sig').splitlines() if line.strip()}
        for name, file in found.items()}


def _listed(line: str, known: set[str]) -> str:
    """The name of the picture in a line: all of the line, or its first word if a mark such as 1 or -1 follows."""
    names = [re.sub(r'\.(jpe?g|png|bmp|tiff?|webp|xml)$', '', text, flags=re.I)
             for text in (line.strip(), line.split()[0])]
    return next((name for name in names if name in known), names[0])


def read_voc(files: Sequence[Path], pictures: Sequence[Path]) -> list[tuple[Path, AnnotatedPicture]]:
    """Read XML files. An object that is marked ``difficult`` becomes a crowd box, which metrics do not count.

    Pixels of Pascal VOC are numbered from 1, and the last one belongs to the box: xmin=1, xmax=10 are the first ten.

    Args:
        files: the XML files.
        pictures: the picture files. The picture of an XML file has the same name, or the name that the XML file gives.
            Of several pictures of the same name, those with the ending that the XML file gives come first, and of these
            the one with the most folders in common with the XML file.

    Returns:
        Each XML file with its picture.

    Raises:
        ValueError: a file is not XML, lacks a name, a number or its picture, or has a box outside the picture.
    """
    named: dict[str, list[Path]] = {}
    for picture in pictures:
        for name in (picture.stem, picture.name):
            named.setdefault(name, []).append(picture)

    def read(file: Path) -> tuple[Path, AnnotatedPicture]:
        try:
            root = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            raise ValueError(f'{file} is not a complete XML file: {error}; export the file again, or remove '
                             'it') from error
        given = Path(with_slashes(root.findtext('filename') or '-')).name
        candidates = named.get(file.stem) or named.get(given)
        if not candidates:
            raise ValueError(f'{file} has no picture: there is none named {file.stem} or '
                             f'{root.findtext("filename")!r}; add the picture, or remove the XML file')
        path = max(candidates, key=lambda picture: (  # masks of the picture may have its stem, with another ending
            picture.name == given, len({*picture.parent.parts} & {*file.parent.parts})))
        width, height = (int(_number(root, f'size/{name}', file)) for name in ('width', 'height'))
        if min(width, height) < 1:
            raise ValueError(f'{file} has no size: width={width}, height={height}; write the width and height of the '
                             'picture in pixels into <size>')
        boxes = []
        for element in root.findall('object'):
            label = (element.findtext('name') or '').strip()
            if not label:
                raise ValueError(f'{file} has an object without <name>; write the name of its class, or remove the '
                                 'object')
            x1, y1, x2, y2 = (_number(element, f'bndbox/{name}', file) for name in ('xmin', 'ymin', 'xmax', 'ymax'))
            corners = within((x1 - 1, y1 - 1, x2, y2), (width, height), f'{file}, {label!r}')
            boxes.append(Box(label, corners, is_crowd=element.findtext('difficult', '0').strip() == '1'))
        return file, AnnotatedPicture(path, (width, height), boxes)

    return read_each(files, read)


def _number(element: ElementTree.Element, path: str, file: Path) -> float:
    text = element.findtext(path)
    try:
        return float(text or '')
    except ValueError:
        raise ValueError(f'{file} has {"no" if text is None else repr(text) + " as"} <{path.replace("/", "> <")}> in '
                         f'<{element.tag}>, which has to be a number of pixels; write it into the file') from None
