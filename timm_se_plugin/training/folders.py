"""Folders with a folder of pictures for each class: what is read, what is left out, and what is refused."""

import filecmp
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from timm.data.readers import img_extensions
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from ..files.pictures import picture_endings

__all__ = ['closest', 'read_class_map', 'read_folder', 'read_tar', 'share_of', 'shared_pictures']

_logger = logging.getLogger(__name__)
_OF_SYSTEMS = ('__MACOSX', '__pycache__', '@eaDir')  # macOS, Python, Synology
_COMPARED = 1000  # how many validation pictures are compared with training pictures of the same name


def closest(unknown: list[str], known: list[str]) -> str:
    """Some unknown names as a part of a sentence, each with the known name that is most like it."""
    def one(name: str) -> str:
        close = get_close_matches(name, known, 1)
        return f'{name!r} (did you mean {close[0]!r}?)' if close else repr(name)
    return ', '.join(map(one, unknown[:5])) + (f' and {len(unknown) - 5} more' if len(unknown) > 5 else '')


def read_class_map(path: str) -> dict[str, int]:
    """The index of each class by its name, from a text file with a name on each line or from timm's pickled dict.

    Raises:
        ValueError: there is no such file, it has another format, a line of it is empty, a name stands in it twice, or
            an index is not a whole number from 0 on.
    """
    if not Path(path).is_file():
        raise ValueError(f'--class-map {path} is not a file')
    if path.endswith('.pkl'):
        indices = load_class_map(path)
        for name, index in indices.items():
            if not isinstance(index, (int, np.integer)) or index < 0:
                raise ValueError(f'--class-map {path} gives {name!r} the index {index!r}, which is not 0, 1, 2, …')
        return dict(indices)
    if not path.endswith('.txt'):
        raise ValueError(f'--class-map {path} is neither a text file, .txt, with a name on each line, the first for '
                         'the index 0, nor a pickled dict, .pkl')
    try:
        text = normalize('NFC', Path(path).read_text(encoding='utf-8-sig'))
    except UnicodeDecodeError as error:
        raise ValueError(f'--class-map {path} is not text in UTF-8; save it as such') from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not all(names) or not names:
        raise ValueError(f'--class-map {path} has ' + (
            f'nothing on line {names.index("") + 1}, which would be a class without a name; take the line away'
            if names else 'no line'))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f'--class-map {path} has {", ".join(map(repr, twice))} on more than one line')
    return {name: index for index, name in enumerate(names)}


def read_folder(root: str, class_map: Mapping[str, int] | None) -> ReaderImageFolder:
    """Pictures of a folder by timm's rules: a class is the folder that a picture is in, and classes are sorted by name.

    Hidden entries and those that operating systems leave behind are passed over. What else is left out is counted.

    Args:
        root: the folder.
        class_map: index of each class by its name; None for the order of the names.

    Raises:
        ValueError: no picture, a picture outside the folders of the classes, or a class that `class_map` misspells.
    """
    pictures, passed, files, empty, links = _listed(root)
    stray = [os.path.basename(path) for path, name in pictures if not name]
    if stray and len(stray) == len(pictures):
        raise ValueError(f'{root} holds {len(stray)} pictures and no folders of classes; put the pictures of each '
                         'class into a folder that has the name of the class')
    if stray:
        raise ValueError(f'{stray[0]} lies beside the folders of the classes in {root}, so that it has no class; move '
                         f'it into one of them or away ({len(stray)} such pictures)')
    if not pictures:
        raise ValueError(f'there are no images in {root!r}{_left_out(passed, files, empty, links, Counter())}')
    _say_doubtful(pictures, root)
    names = sorted({name for _, name in pictures}, key=_order)
    indices = _indices(names, class_map, root)
    unmapped = Counter(name for _, name in pictures if name not in indices)
    reader = object.__new__(ReaderImageFolder)  # whose constructor would list the files by its own rules
    reader.root, reader.class_to_idx = root, indices
    reader.samples = [(path, indices[name]) for path, name in sorted(pictures, key=lambda item: natural_key(item[0]))
                      if name in indices]
    left = _left_out(passed, files, empty, links, unmapped)
    if left:
        (_logger.warning if empty or unmapped or any(links) else _logger.info)(
            '%s: %d pictures of %d classes%s', root, len(reader.samples), len(names) - len(unmapped), left)
    return reader


def share_of(samples: Sequence[tuple[str, int]], root: str, share: float, seed: int) -> list[bool]:
    """Which pictures are in a share that has as large a part of each class, at least one picture of each.

    A picture is chosen by a number that its path below `root` and the seed give: where others come and go, few change
    sides, and the order of the files and the machine don't matter.

    Args:
        samples: path and class of each picture.
        root: folder of the folders of the classes.
        share: part of each class, between 0 and 1.
        seed: of the numbers.

    Raises:
        ValueError: a class has one picture, which cannot be on both sides.
    """
    by_class: dict[int, list[tuple[bytes, int]]] = {}
    for i, (path, target) in enumerate(samples):
        name = Path(os.path.relpath(path, root)).as_posix()
        by_class.setdefault(target, []).append((hashlib.sha256(f'{seed}/{name}'.encode()).digest(), i))
    chosen = [False] * len(samples)
    for ranked in by_class.values():
        if len(ranked) < 2:
            raise ValueError(f'{samples[ranked[0][1]][0]} is the only picture of its class, and --val-share needs two: '
                             'one to train on and one to evaluate on')
        for _, i in sorted(ranked)[:min(max(round(share * len(ranked)), 1), len(ranked) - 1)]:
            chosen[i] = True
    return chosen


def read_tar(root: str, class_map: Mapping[str, int] | None) -> ReaderImageInTar:
    """Pictures of a tar file by timm's rules, in any format that Pillow reads.

    Raises:
        ValueError: no picture, or a class that `class_map` misspells.
    """
    with _endings(picture_endings()):
        try:
            reader = ReaderImageInTar(root, dict(class_map) if class_map else '')
        except ValueError as error:  # of zip(*[])
            raise ValueError(f'there are no images in {root!r} of a known class') from error
    shown = [not any(map(_is_hidden, sample[0].path.split('/'))) for sample in reader.samples]
    if not all(shown):
        _logger.info('%s: %d hidden entries are left out', root, shown.count(False))
    names = [reader.class_idx_to_name[int(target)] for target in reader.targets[shown]]
    if not class_map:
        if '' in names:
            raise ValueError(f'{root} holds pictures outside the folders of the classes, so that they have no class')
        found = _indices(sorted(set(names), key=_order), None, root)
        reader.class_name_to_idx, reader.class_idx_to_name = found, {index: name for name, index in found.items()}
    reader.samples = reader.samples[shown]
    reader.targets = np.array([reader.class_name_to_idx[name] for name in names])
    return reader


def shared_pictures(train: Any, validation: Any) -> tuple[int, int]:
    """How many validation pictures have the class, the name and the content of a training picture.

    Returns:
        Their number, and that of the validation pictures that were looked at: at most 1000, from all over the folder.
    """
    samples = validation.samples[::-(-len(validation.samples) // _COMPARED) or 1]
    placed = {Path(path).parts[-2:]: path for path, _ in samples}
    pairs = [(path, placed[place]) for path, _ in train.samples if (place := Path(path).parts[-2:]) in placed]
    with suppress(OSError):  # the pictures themselves are looked at when they are loaded
        return len({second for first, second in pairs if filecmp.cmp(first, second, shallow=False)}), len(samples)
    return 0, len(samples)


def _order(name: str) -> tuple[list[Any], str]:
    return natural_key(name), name  # two names that differ in their case alone have the same key in timm


def _listed(root: str) -> tuple[
        list[tuple[str, str]], list[str], Counter[str], list[str], tuple[list[str], list[str]]]:
    """Pictures with their classes; entries passed over; other files by their ending; folders without pictures; links.

    The links lead to nothing, or to a folder that they lie in, whose pictures would be read again and again.
    """
    endings, pictures, empty = picture_endings(), [], []
    passed: list[str] = []
    others: Counter[str] = Counter()
    lost: list[str] = []
    loops: list[str] = []

    def refuse(error: OSError) -> None:  # os.walk by itself passes over a folder that may not be read
        raise error
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        hidden = [name for name in (*folders, *files) if _is_hidden(name)]
        passed += hidden
        back = [name for name in folders if os.path.islink(path := os.path.join(folder, name)) and (
            Path(path).resolve() in (real := Path(folder).resolve(), *real.parents))]
        loops += [name for name in back if name not in hidden]
        folders[:] = [name for name in folders if name not in hidden and name not in back]
        name = normalize('NFC', os.path.basename(folder)) if folder != root else ''  # macOS takes accents apart
        found = 0
        for file in files:
            ending = os.path.splitext(file)[1].lower()
            if file in hidden:
                continue
            if ending in endings:
                pictures.append((os.path.join(folder, file), name))
                found += 1
            elif not os.path.exists(os.path.join(folder, file)):
                lost.append(file)
            else:
                others[ending or 'no ending'] += 1
        if not (found or folders) and name:
            empty.append(name)
    return pictures, passed, others, empty, (lost, loops)


def _say_doubtful(pictures: list[tuple[str, str]], root: str) -> None:
    """Log which folders hardly mean the classes that timm's rule makes of them."""
    folders: dict[str, set[str]] = {}
    for folder, name in {(os.path.dirname(path), name) for path, name in pictures}:
        folders.setdefault(name, set()).add(os.path.relpath(folder, root))
    alike: dict[str, list[str]] = {}
    same: dict[str, list[str]] = {}
    doubts = []
    for name in sorted(folders, key=_order):
        alike.setdefault(''.join(name.casefold().split()), []).append(name)
        parts = sorted(folders[name])
        for folder in parts:
            same.setdefault(os.path.realpath(os.path.join(root, folder)), []).append(name)
            above = set(Path(folder).parts[:-1]) & folders.keys() - {name}
            if above:
                doubts.append(f'the class {name!r} lies in the folder of the class {sorted(above)[0]!r}')
        if len(parts) > 1:
            doubts.append(f'the class {name!r} is made of {len(parts)} folders, {", ".join(parts[:5])}')
    for found, what in ((alike, 'differ in letter case or blanks alone'), (same, 'are the same folder')):
        doubts += [f'the classes {" and ".join(map(repr, names))} {what}'
                   for names in map(list, map(dict.fromkeys, found.values())) if len(names) > 1]
    for doubt in doubts[:5]:
        _logger.warning('%s: %s; the class of a picture is the name of the folder that holds it', root, doubt)


def _is_hidden(name: str) -> bool:
    return (name.startswith('.') and name != '.') or name in _OF_SYSTEMS


def _left_out(passed: list[str], files: Counter[str], empty: list[str],
              links: tuple[list[str], list[str]], unmapped: Counter[str]) -> str:
    parts = [f'{count} {what} ({", ".join(sorted(set(names))[:5])})' for count, what, names in (
        (len(passed), 'hidden entries', passed), (files.total(), 'files that are no pictures by their ending', files),
        (len(empty), 'folders without a picture', empty),
        (len(links[0]), 'links to nothing', links[0]),
        (len(links[1]), 'links to a folder that they lie in', links[1]),
        (unmapped.total(), 'pictures of classes that are not in --class-map', unmapped)) if count]
    return f'; left out: {", ".join(parts)}' if parts else ''


def _indices(names: list[str], class_map: Mapping[str, int] | None, root: str) -> dict[str, int]:
    if class_map is None:
        return {name: index for index, name in enumerate(names)}
    unmapped, absent = [name for name in names if name not in class_map], [n for n in class_map if n not in names]
    if unmapped and (absent or len(unmapped) == len(names)):
        raise ValueError(
            f'--class-map has no class {closest(unmapped, absent)} of {root}, which has no folder '
            f'{closest(absent, [])}; let the folders and the lines of the file have the same names')
    return dict(class_map)


@contextmanager
def _endings(endings: set[str]) -> Iterator[None]:
    before = img_extensions.get_img_extensions()
    img_extensions.set_img_extensions(sorted(endings))  # timm's reader of tar files has no argument for them
    try:
        yield
    finally:
        img_extensions.set_img_extensions(before)
