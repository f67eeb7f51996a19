"""Pictures with any number of labels each: a CSV file with a column for each label."""

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import torch
from timm.data import MultiLabelTarget
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import Tensor

from ..files.class_names import nearly_equal
from ..files.counting import counted
from ..files.pictures import original_name, with_slashes
from .folders import closest, share_of

__all__ = ['LabelReader', 'LabelTarget', 'read_labels', 'share_of_labels']

_logger = logging.getLogger(__name__)
# As pandas writes them; Excel writes TRUE.
_CELLS = {'0': False, '1': True, '0.0': False, '1.0': True, 'False': False, 'True': True}


@dataclass(frozen=True)
class LabelTarget:
    """The target of a picture: 1 for each of its labels and 0 for the others.

    Args:
        order: index in the target of each label of the data.
        size: number of labels of the target.
    """

    order: tuple[int, ...]
    size: int

    def __call__(self, labels: Sequence[int]) -> Tensor:
        """The target, (size,), of a picture with these labels of the data."""
        return MultiLabelTarget(self.size)([self.order[label] for label in labels])

    @property
    def unknown(self) -> Tensor:
        """The target of an unreadable picture, (size,)."""
        return torch.full((self.size,), -1.0)


class LabelReader(ReaderImageFolder):
    """timm's reader of picture files, whose targets are the indices of all labels of a picture.

    Args:
        root: the CSV file.
        names: names of the labels.
        samples: path and label indices of each picture.
    """

    def __init__(self, root: str, names: Sequence[str], samples: list[tuple[str, tuple[int, ...]]]) -> None:
        Reader.__init__(self)  # ReaderImageFolder's own constructor lists the files of a folder
        self.root, self.samples = root, samples
        self.class_to_idx = {name: index for index, name in enumerate(names)}

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return os.path.basename(path) if basename else path


def read_labels(path: str) -> LabelReader:
    """Pictures and their labels from a CSV file.

    The first column has the path of a picture, absolute or relative to the folder of the file; each further column is a
    label, with 1 for the pictures that have it and 0 for the others. The first line names the columns. The backslashes
    that Windows writes into paths become slashes.

    Raises:
        ValueError: the file is not such a table, a cell is neither 0 nor 1, a picture is on two lines, or a picture
            does not exist.
    """
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not text in UTF-8; save the file in that encoding') from error
    rows = _rows(path, text)
    names = _names(path, [normalize('NFC', name) for name in next(rows, (0, []))[1]])
    samples: list[tuple[str, tuple[int, ...]]] = []
    lines: dict[str, int] = {}
    missing = []
    for number, row in rows:
        if not any(row):
            continue
        where = f'{path}, line {number},'
        if len(row) != len(names) + 1:
            raise ValueError(f'{where} has {len(row)} cells, and the first line names {len(names) + 1} columns')
        picture, *cells = (cell.strip() for cell in row)
        has = [_CELLS.get(cell.capitalize()) for cell in cells]
        for name, cell, value in zip(names, cells, has, strict=True):
            if value is None:
                raise ValueError(f'{where} has {cell!r} in the column {name!r}; a picture with a label has 1 in its '
                                 'column, and the others 0')
        file = _file(os.path.dirname(path), with_slashes(picture))
        key = os.path.normpath(file)
        if key in lines:
            raise ValueError(f'{where} has the picture {picture} of line {lines[key]} again; a picture has all of '
                             'its labels on one line')
        lines[key] = number
        if not os.path.isfile(file):
            missing.append(picture)
        samples.append((file, tuple(label for label, value in enumerate(has) if value)))
    if missing:
        raise ValueError(f'{path} names {len(missing)} of {len(samples)} pictures that do not exist: '
                         f'{closest(missing, [])}; paths are relative to the folder of the CSV file')
    if not samples:
        raise ValueError(f'{path} names no picture')
    _log_doubts(path, names, samples)
    return LabelReader(path, names, samples)


def share_of_labels(reader: LabelReader, share: float, seed: int) -> list[bool]:
    """Choose about the same share of each label.

    A picture counts for its rarest label. The only picture of a label is not in the share.

    Args:
        reader: result of :func:`read_labels`.
        share: share of the pictures, between 0 and 1.
        seed: seed of the choice, as for :func:`~.folders.share_of`.

    Returns:
        Whether each picture is in the share.
    """
    counts = Counter(label for _, labels in reader.samples for label in labels)
    rarest = [min(labels, key=lambda label: (counts[label], label), default=-1) for _, labels in reader.samples]
    groups = Counter(label for label, _ in {
        (label, original_name(path)) for label, (path, _) in zip(rarest, reader.samples, strict=True)})
    several = [i for i, label in enumerate(rarest) if groups[label] > 1]
    inside = share_of([(reader.samples[i][0], rarest[i]) for i in several], os.path.dirname(reader.root), share, seed)
    chosen = {i for i, is_chosen in zip(several, inside, strict=True) if is_chosen}
    return [i in chosen for i in range(len(rarest))]


def _file(folder: str, name: str) -> str:
    """Path of a file; macOS spells an accent as a character of its own, and other systems tell the two apart."""
    paths = [os.path.join(folder, spelling) for spelling in (name, normalize('NFC', name), normalize('NFD', name))]
    return next(filter(os.path.isfile, paths), paths[0])


def _rows(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the number of its last line."""
    rows = csv.reader(io.StringIO(text, newline=''))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ValueError(f'{path}, line {rows.line_num}, is not CSV: {error}; a cell with a quotation mark at its '
                         'beginning needs one at its end too') from error


def _names(path: str, header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header[1:]]
    if not names:
        others = [mark for mark in (';', '\t', '|') if mark in ''.join(header)]
        raise ValueError(f'{path} has no column for a label on its first line: a column with the paths of the pictures '
                         'comes first, then a column of 0 and 1 for each label, separated by commas'
                         f'{f", and not by {others[0]!r} as here" if others else ""}')
    if not all(names):
        raise ValueError(f'{path} has no name for the column {names.index("") + 2} on its first line; name the label, '
                         'or remove the column')
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f'{path} has several columns named {", ".join(map(repr, twice))}')
    return names


def _log_doubts(path: str, names: Sequence[str], samples: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    found = {label for _, labels in samples for label in labels}
    absent = [name for label, name in enumerate(names) if label not in found]
    if absent:
        _logger.warning('%s: %s without a picture (%s)', path, counted(len(absent), 'label'), ', '.join(absent[:5]))
    for described in nearly_equal(names):
        _logger.warning('%s: the labels %s; each is a label of its own', path, described)
    empty = sum(not labels for _, labels in samples)
    if empty:
        _logger.info('%s: %d of %d pictures have no label', path, empty, len(samples))
