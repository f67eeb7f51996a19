"""Folders with a folder of pictures for each class: what is read, what is left out, and what is refused."""

import filecmp
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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

from ..files.class_names import nearly_equal
from ..files.counting import counted
from ..files.pictures import original_name, picture_endings, walk

__all__ = ['SPLITS', 'class_key', 'closest', 'read_class_map', 'read_folder', 'read_tar', 'share_of', 'shared_pictures']

_logger = logging.getLogger(__name__)
_OF_SYSTEMS = ('__MACOSX', '__pycache__', '@eaDir')  # folders that macOS, Python and Synology leave behind
_HIDDEN = 'hidden entry', 'hidden entries'
_COMPARED = 1000  # the most validation pictures that are compared with training pictures
# Names that mean the same split; timm looks for any of them.
SPLITS = (('train', 'training'), ('validation', 'val', 'valid', 'eval', 'evaluation'), ('test',))


def closest(unknown: list[str], known: list[str]) -> str:
    """Up to five unknown names for a message, each with the known name that is most like the unknown one."""
    def one(name: str) -> str:
        close = get_close_matches(name, known, 1)
        return f'{name!r} (did you mean {close[0]!r}?)' if close else repr(name)
    return ', '.join(map(one, unknown[:5])) + (f' and {len(unknown) - 5} more' if len(unknown) > 5 else '')


def read_class_map(path: str) -> dict[str, int]:
    """The index of each class by its name, from a text file with a name on each line or from timm's pickled dict.

    Raises:
        ValueError: the file does not exist or has another format, a line is empty, a name is on two lines, or an index
            is not an integer of 0 or more.
    """
    if not Path(path).is_file():
        raise ValueError(f'--class-map {path} is not a file')
    if path.endswith('.pkl'):
        indices = load_class_map(path)
        for name, index in indices.items():
            if not isinstance(index, (int, np.integer)) or index < 0:
                raise ValueError(f'--class-map {path} gives {name!r} the index {index!r}; an index is '
                                 'an integer of 0 or more')
        return dict(indices)
    if not path.endswith('.txt'):
        raise ValueError(f'--class-map {path} is neither a text file, .txt, with a name on each line, the first for '
                         'the index 0, nor a pickled dict, .pkl')
    try:
        text = normalize('NFC', Path(path).read_text(encoding='utf-8-sig'))
    except UnicodeDecodeError as error:
        raise ValueError(f'--class-map {path} is not text in UTF-8; save the file in that encoding') from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise ValueError(f'--class-map {path} is empty; write the names of the classes into it, one on each line')
    if not all(names):
        raise ValueError(f'--class-map {path} has nothing on line {names.index("") + 1}, which would be a class '
                         'without a name; remove the line')
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f'--class-map {path} has {", ".join(map(repr, twice))} on more than one line')
    return {name: index for index, name in enumerate(names)}


def read_folder(root: str, class_map: Mapping[str, int] | None) -> ReaderImageFolder:
    """Pictures of a folder by timm's rules: a class is the folder that a picture is in, and classes are sorted by name.

    Hidden entries and those of operating systems are left out; the log counts them and all else that is left out.

    Args:
        root: folder with a folder for each class.
        class_map: index of each class by its name; None for the order of the names.

    Raises:
        ValueError: no picture, a picture outside the folders of the classes, or a class that `class_map` misspells.
    """
    listing = _Listing.of(root)
    pictures = listing.pictures
    stray = [os.path.basename(path) for path, name in pictures if not name]
    if stray and len(stray) == len(pictures):
        raise ValueError(f'{root} holds {counted(len(stray), "picture")} and no folders of classes; put the pictures '
                         'of each class into a folder that has the name of the class')
    if stray:
        raise ValueError(f'{stray[0]} lies beside the folders of the classes in {root}, so that it has no class; move '
                         f'it into one of them, or remove it ({len(stray)} such pictures)')
    if not pictures:
        raise ValueError(f'there are no images in {root!r}{listing.left_out(Counter())}')
    _warn_of_doubtful_classes(pictures, root)
    names = sorted({name for _, name in pictures}, key=class_key)
    indices = _indices(names, class_map, root)
    unmapped = Counter(name for _, name in pictures if name not in indices)
    reader = object.__new__(ReaderImageFolder)  # not by its constructor, which lists files of timm's endings only
    reader.root, reader.class_to_idx = root, indices
    reader.samples = [(path, indices[name]) for path, name in sorted(pictures, key=lambda item: natural_key(item[0]))
                      if name in indices]
    left = listing.left_out(unmapped)
    if left:
        (_logger.warning if listing.deserves_warning or unmapped else _logger.info)(
            '%s: %s of %s%s', root, counted(len(reader.samples), 'picture'),
            counted(len(names) - len(unmapped), 'class', 'classes'), left)
    return reader


def share_of(samples: Sequence[tuple[str, int]], root: str, share: float, seed: int) -> list[bool]:
    """Choose the same share of each class, with at least one picture of each class inside and one outside.

    Pictures are ranked by a hash of the seed and of their path below `root`. The choice therefore does not depend on
    the order of the files or on the machine, and few pictures change sides when others are added or removed. The
    variants of one picture that Roboflow writes stay together.

    Args:
        samples: path and class of each picture.
        root: folder of the folders of the classes.
        share: share of each class, between 0 and 1.
        seed: seed of the choice.

    Returns:
        Whether each picture is in the share.

    Raises:
        ValueError: a class has only one picture, which cannot be both inside and outside.
    """
    by_class: dict[int, dict[str, list[int]]] = {}
    for i, (path, target) in enumerate(samples):
        name = original_name(Path(os.path.relpath(path, root)).as_posix())
        by_class.setdefault(target, {}).setdefault(name, []).append(i)
    chosen = [False] * len(samples)
    for pictures in by_class.values():
        if len(pictures) < 2:
            only = samples[next(iter(pictures.values()))[0]][0]
            raise ValueError(f'{only} is the only picture of its class, and --val-share needs two: one to train on and '
                             'one to evaluate on')
        ranked = sorted(pictures, key=lambda name: hashlib.sha256(os.fsencode(f'{seed}/{name}')).digest())
        for name in ranked[:min(max(round(share * len(ranked)), 1), len(ranked) - 1)]:
            for i in pictures[name]:
                chosen[i] = True
    return chosen


def read_tar(root: str, class_map: Mapping[str, int] | None) -> ReaderImageInTar:
    """Pictures of a tar file by timm's rules, in any format that Pillow reads.

    Args:
        root: the tar file.
        class_map: index of each class by its name; None for the order of the names.

    Raises:
        ValueError: no picture, a picture outside the folders of the classes, or a class that `class_map` misspells.
    """
    with _endings(picture_endings()):
        try:
            reader = ReaderImageInTar(root)  # its argument class_map silently leaves out what it does not name
        except ValueError as error:  # without images, timm unpacks an empty zip
            raise ValueError(f'there are no images in {root!r}') from error
    shown = [not any(map(_is_hidden, sample[0].path.split('/'))) for sample in reader.samples]
    if not any(shown):
        raise ValueError(f'there are no images in {root!r}')
    if not all(shown):
        _logger.info('%s; left out: %s', root, counted(shown.count(False), *_HIDDEN))
    names = [normalize('NFC', reader.class_idx_to_name[int(target)]) for target in reader.targets[shown]]
    if '' in names:
        raise ValueError(f'{root} holds pictures outside the folders of the classes, so that they have no class')
    indices = _indices(sorted(set(names), key=class_key), class_map, root)
    unmapped = Counter(name for name in names if name not in indices)
    if unmapped:
        _logger.warning('%s: %s%s', root, counted(len(names) - unmapped.total(), 'picture'),
                        _Listing().left_out(unmapped))
    mapped = [name in indices for name in names]
    reader.class_name_to_idx, reader.class_idx_to_name = indices, {index: name for name, index in indices.items()}
    reader.samples = reader.samples[shown][mapped]
    reader.targets = np.array([indices[name] for name in names if name in indices])
    return reader


def shared_pictures(train: Any, validation: Any) -> tuple[int, int]:
    """How many validation pictures have the class, the name and the content of a training picture.

    Returns:
        Their number, and the number of validation pictures that were compared: at most 1000, from all over the folder.
    """
    samples = validation.samples[::-(-len(validation.samples) // _COMPARED) or 1]
    placed = {Path(path).parts[-2:]: path for path, _ in samples}
    pairs = [(path, placed[place]) for path, _ in train.samples if (place := Path(path).parts[-2:]) in placed]
    with suppress(OSError):  # an unreadable picture is reported when it is loaded
        return len({second for first, second in pairs if filecmp.cmp(first, second, shallow=False)}), len(samples)
    return 0, len(samples)


def class_key(name: str) -> tuple[list[Any], str]:
    """Key that sorts the names of classes as timm counts them: class10 behind class9."""
    return natural_key(name), name  # timm's key is the same for names that differ only in letter case


@dataclass
class _Listing:
    """The entries of a folder of classes.

    Args:
        pictures: path and class of each picture; the class of a picture beside the folders is empty.
        hidden: hidden entries, and those of operating systems.
        others: number of other files by their ending.
        empty: folders without pictures.
        broken_links: links to nothing.
    """

    pictures: list[tuple[str, str]] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, root: str) -> '_Listing':
        self, endings = cls(), picture_endings()

        def refuse(error: OSError) -> None:  # by default, os.walk silently skips a folder that may not be read
            raise error
        for folder, folders, files in walk(root, refuse):
            hidden = [name for name in (*folders, *files) if _is_hidden(name)]
            self.hidden += hidden
            folders[:] = [name for name in folders if name not in hidden]
            name = normalize('NFC', os.path.basename(folder)) if folder != root else ''  # macOS decomposes accents
            found = 0
            for file in files:
                ending = os.path.splitext(file)[1].lower()
                if file in hidden:
                    continue
                if ending in endings:
                    self.pictures.append((os.path.join(folder, file), name))
                    found += 1
                elif not os.path.exists(os.path.join(folder, file)):
                    self.broken_links.append(file)
                else:
                    self.others[ending or 'no ending'] += 1
            if not (found or folders) and name:
                self.empty.append(name)
        return self

    @property
    def deserves_warning(self) -> bool:
        """Whether what is left out may be a mistake."""
        return bool(self.empty or self.broken_links)

    def left_out(self, unmapped: Counter[str]) -> str:
        """What is left out, as the end of a message; `unmapped` counts the pictures of classes without an index."""
        parts = [f'{counted(count, *what)} ({", ".join(sorted(set(names))[:5])})' for count, what, names in (
            (len(self.hidden), _HIDDEN, self.hidden),
            (self.others.total(), ('file that is no picture by its ending',
                                   'files that are no pictures by their ending'), self.others),
            (len(self.empty), ('folder without a picture', 'folders without a picture'), self.empty),
            (len(self.broken_links), ('link to nothing', 'links to nothing'), self.broken_links),
            (unmapped.total(), ('picture of a class that is not in --class-map',
                                'pictures of classes that are not in --class-map'), unmapped)) if count]
        return f'; left out: {", ".join(parts)}' if parts else ''


def _warn_of_doubtful_classes(pictures: list[tuple[str, str]], root: str) -> None:
    """Warn of classes that are probably not meant: nested, of several folders, nearly equal in name, or splits."""
    folders: dict[str, set[str]] = {}
    for folder, name in {(os.path.dirname(path), name) for path, name in pictures}:
        folders.setdefault(name, set()).add(os.path.relpath(folder, root))
    same: dict[str, list[str]] = {}
    doubts = []
    if len(folders) > 1 and all(any(name.casefold() in names for names in SPLITS) for name in folders):
        doubts.append(f'the classes {" and ".join(map(repr, sorted(folders, key=class_key)))} have the names of splits')
    for name in sorted(folders, key=class_key):
        parts = sorted(folders[name])
        for folder in parts:
            same.setdefault(os.path.realpath(os.path.join(root, folder)), []).append(name)
            above = set(Path(folder).parts[:-1]) & folders.keys() - {name}
            if above:
                doubts.append(f'the class {name!r} lies in the folder of the class {sorted(above)[0]!r}')
        if len(parts) > 1:
            doubts.append(f'the class {name!r} is made of {len(parts)} folders, {", ".join(parts[:5])}')
    doubts += [f'the classes {described}' for described in nearly_equal(sorted(folders, key=class_key))]
    doubts += [f'the classes {" and ".join(map(repr, names))} are the same folder'
               for names in map(dict.fromkeys, same.values()) if len(names) > 1]
    for doubt in doubts[:5]:
        _logger.warning('%s: %s; the class of a picture is the name of the folder that holds it', root, doubt)


def _is_hidden(name: str) -> bool:
    return (name.startswith('.') and name != '.') or name in _OF_SYSTEMS


def _indices(names: list[str], class_map: Mapping[str, int] | None, root: str) -> dict[str, int]:
    if class_map is None:
        return {name: index for index, name in enumerate(names)}
    unmapped, absent = [name for name in names if name not in class_map], [n for n in class_map if n not in names]
    if unmapped and (absent or len(unmapped) == len(names)):
        raise ValueError(
            f'--class-map has no class {closest(unmapped, absent)} of {root}, which has no folder '
            f'{closest(absent, [])}; give the folders and the lines of the file the same names')
    return dict(class_map)


@contextmanager
def _endings(endings: set[str]) -> Iterator[None]:
    """Let timm's readers take files with these endings, as long as the block lasts."""
    before = img_extensions.get_img_extensions()
    img_extensions.set_img_extensions(sorted(endings))  # the reader of tar files has no argument for endings
    try:
        yield
    finally:
        img_extensions.set_img_extensions(before)
