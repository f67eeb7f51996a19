"""Reads a folder of pictures and boxes, in the format of COCO, Pascal VOC or YOLO, as COCO annotations."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from ..files.class_names import nearly_equal
from ..files.counting import counted
from ..files.pictures import original_name, walk
from ..files.writing import write_atomically
from .coco import class_names, read_coco
from .conversion import AnnotatedPicture, to_coco
from .voc import is_voc, names_in_lists, read_voc, split_lists
from .yolo import is_yolo, read_yolo

__all__ = ['Split', 'read_folder']

_logger = logging.getLogger(__name__)
_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
_DEPTH = 5  # levels of folders that are searched
_LOOKED = 50  # the most pictures of a split that are looked for in each folder that may hold them
_SPLIT = re.compile(r'(?<![a-z])(train|val|test)(?:ing|id|idation)?(?![a-z])')


class Split(NamedTuple):
    """The annotations of a split.

    Args:
        content: content of a file in COCO's format.
        pictures: folder to which the names of the picture files are relative.
        file: file with this content.
    """

    content: dict[str, Any]
    pictures: Path
    file: Path


def read_folder(
        folder: str | Path, kept_in: Path, val_share: float | None = None,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Find the pictures and boxes of each split in a folder, and the classes.

    A split is known by the words train, val (or valid, validation) and test in the names of files or folders, by the
    lists of Pascal VOC, or by YOLO's YAML file. Data without any of these belongs to the train split.

    Args:
        folder: the folder, into which nothing is written.
        kept_in: folder for the annotation files of splits that are converted or divided.
        val_share: share of the train split that becomes the val split, between 0 and 1; None for data with a val split.
            Pictures are ranked by a hash of their name: few change sides when others are added or removed. The
            variants of one picture that Roboflow writes stay together.

    Returns:
        The splits by the names ``'train'``, ``'val'`` and ``'test'``, of which the last may be missing, and the names
        of the classes that have boxes.

    Raises:
        FileNotFoundError: there is no such folder, no annotation in it, or no picture of the annotations.
        ValueError: the annotations are wrong, in several formats, or in several files for a split; the folder has
            no train or no val split, or a val split although `val_share` is given.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f'--data {folder} is not a folder; give a folder with pictures and their boxes')
    files, folders = _below(root, kept_in)
    found = {'COCO': [file for file in files if _is_coco(file)], 'Pascal VOC': [file for file in files if is_voc(file)],
             'YOLO': [file for file in files if is_yolo(file)]}
    formats = [name for name, of_format in found.items() if of_format]
    if len(formats) != 1:
        raise (ValueError if formats else FileNotFoundError)(_which_format(root, found, files))
    if formats == ['COCO']:
        splits = _coco_splits(root, found['COCO'], folders)
    else:
        annotated, names = (_voc_splits(root, found['Pascal VOC'], files) if formats == ['Pascal VOC'] else
                            _yolo_splits(found['YOLO']))
        splits = {name: Split(to_coco(pictures, names, root), root, kept_in / f'instances_{name}.json')
                  for name, pictures in annotated.items()}
    splits = _with_validation(splits, root, kept_in, val_share)
    kept = [split for split in splits.values() if split.file.parent == kept_in]
    if kept:
        kept_in.mkdir(parents=True, exist_ok=True)
        with FileLock(kept_in / '.lock'):   # each process of a distributed run writes the same files
            for split in kept:
                write_atomically(split.file, json.dumps(split.content).encode())
    classes = _classes_with_boxes(splits, root)
    _logger.info('%s, in the format of %s: %s; %s: %s', root, formats[0], ', '.join(
        f'{name} {counted(len(split.content["images"]), "picture")} with '
        f'{counted(len(split.content["annotations"]), "box", "boxes")}' for name, split in splits.items()),
        counted(len(classes), 'class', 'classes'), ', '.join(classes))
    return splits, classes


def _below(root: Path, kept_in: Path) -> tuple[list[Path], list[Path]]:
    """The files below a folder, and their folders; hidden ones and those of runs are left out."""
    files, folders = [], []
    for place, inner, names in walk(root):
        path = Path(place)
        deep = len(path.relative_to(root).parts) >= _DEPTH
        inner[:] = [] if deep else sorted(name for name in inner if not name.startswith('.') and name != 'work_dirs'
                                          and path / name != kept_in.absolute())
        folders.append(path)
        files += [path / name for name in sorted(names) if not name.startswith('.')]
    return files, folders


def _is_coco(file: Path) -> bool:
    if file.suffix.lower() != '.json':
        return False
    content = file.read_bytes()
    return all(f'"{name}"'.encode() in content for name in ('images', 'annotations', 'categories'))


def _which_format(root: Path, found: dict[str, list[Path]], all_files: Sequence[Path]) -> str:
    if any(found.values()):
        first = ', '.join(f'{name} ({files[0].relative_to(root)})' for name, files in found.items() if files)
        return (f'{root} has annotations in more than one format: {first}; give a folder with those of one format, or '
                'move the other annotations away')
    pictures = sum(file.suffix.lower() in _ENDINGS for file in all_files)
    other = next((f'. A file such as {file.relative_to(root)} is none of these' for file in all_files
                  if file.suffix.lower() in ('.json', '.xml', '.yaml', '.txt')), '')
    names = next((file for file in all_files if file.name in ('classes.txt', 'obj.names')), None)
    if names:  # as labelImg, Label Studio and CVAT write them
        other = (f'. {names.relative_to(root)} names classes of YOLO: beside it, write a file data.yaml with the lines '
                 '"train: FOLDER", the folder of the pictures, and "names: [CLASS, CLASS]", in the order of that file')
    return (f'{root} has {pictures} pictures and no annotations; looked for COCO (a JSON file with images, annotations '
            'and categories), Pascal VOC (an XML file for each picture) and YOLO (a YAML file such as data.yaml, with '
            f'names and train, beside labels in text files){other}; give the folder that holds both the pictures and '
            'their boxes')


def _split_of(path: Path) -> str | None:
    """The split that the name of a file, or else of the nearest folder around the file, contains."""
    for part in (path.stem, *reversed(path.parts[:-1])):
        words = _SPLIT.findall(part.lower())
        if words:
            return words[-1]
    return None


def _coco_splits(root: Path, files: Sequence[Path], folders: Sequence[Path]) -> dict[str, Split]:
    of_splits: dict[str | None, list[Path]] = {}
    for file in files:
        of_splits.setdefault(_split_of(file.relative_to(root)), []).append(file)
    unnamed = of_splits.pop(None, [])
    if 'train' not in of_splits and unnamed:
        of_splits = {'train': unnamed, **of_splits}
    elif unnamed:
        _logger.warning('%s is left out, since its name contains none of train, val and test',
                        ', '.join(map(str, unnamed)))
    splits = {}
    for name, candidates in of_splits.items():
        # In COCO, captions and keypoints of the same pictures lie beside the instances.
        chosen = [file for file in candidates if file.name.startswith('instances_')] or candidates
        if len(chosen) > 1:
            raise ValueError(f'{root} has {len(chosen)} files that may be the annotations of {name}: '
                             f'{", ".join(str(file.relative_to(root)) for file in chosen[:5])}; keep one of them, or '
                             'name each after its split: train.json, val.json, test.json')
        content = read_coco(str(chosen[0]), str(chosen[0])).dataset
        splits[str(name)] = Split(content, _pictures_folder(root, chosen[0], content, str(name), folders), chosen[0])
    return splits


def _pictures_folder(root: Path, file: Path, content: dict[str, Any], split: str, folders: Sequence[Path]) -> Path:
    """The folder from which the names of pictures lead to files; of several, the split's own or the nearest.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a picture has no name.
    """
    names = [image.get('file_name') for image in content['images']]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f'{file} has images without file_name; add the file name of each image')
    looked = names[::-(-len(names) // _LOOKED)]

    def rank(candidate: Path) -> tuple[int, int, int, int]:
        word = _split_of(candidate.relative_to(root) / '_')
        return (sum((candidate / name).is_file() for name in looked), {split: 2, None: 1}.get(word, 0),
                len({*candidate.parts} & {*file.parent.parts}), -len(candidate.parts))

    best = max(folders, key=rank)
    missing = next((name for name in looked if not (best / name).is_file()), None)
    if missing:
        raise FileNotFoundError(f'{file} names the picture {missing}, which does not exist in {best}, the folder in '
                                f'{root} with the most of its pictures ({rank(best)[0]} of {len(looked)} looked for); '
                                f'put the pictures of {split} into one folder, or correct file_name in the file')
    return best


def _voc_splits(
        root: Path, files: Sequence[Path], all_files: Sequence[Path],
) -> tuple[dict[str, list[AnnotatedPicture]], list[str]]:
    lists = split_lists(all_files)
    listed = set().union(*lists.values())
    if lists:
        missing = sorted(listed.difference(*map(names_in_lists, files)))
        if missing:
            named = counted(len(missing), 'picture that has', 'pictures that have')
            raise FileNotFoundError(f'the lists in ImageSets/Main of {root} name {named} no XML file, of which '
                                    f'{missing[0]} is the first; add the files, or remove the names from the lists')
        left_out = [file for file in files if not names_in_lists(file) & listed]
        if left_out:
            _logger.info('%d XML files, of which %s is the first, are left out, since no list in ImageSets/Main has '
                         'them', len(left_out), left_out[0])
        files = [file for file in files if names_in_lists(file) & listed]
    splits: dict[str, list[AnnotatedPicture]] = {}
    for file, picture in read_voc(files, [file for file in all_files if file.suffix.lower() in _ENDINGS]):
        named = max(names_in_lists(file) & listed, key=len, default='')  # a.xml may lie in a folder and outside of it
        of_file = [name for name, names in lists.items() if named in names] if lists else [
            _split_of(file.parent.relative_to(root) / '_') or 'train']  # the file's name may say what is in the picture
        for name in of_file:
            splits.setdefault(name, []).append(picture)
    names = {box.label for pictures in splits.values() for picture in pictures for box in picture.boxes}
    return splits, sorted(names)


def _yolo_splits(files: Sequence[Path]) -> tuple[dict[str, list[AnnotatedPicture]], list[str]]:
    if len(files) > 1:
        raise ValueError(f'{files[0]} and {files[1]} both describe data of YOLO; keep one of them')
    return read_yolo(files[0], _ENDINGS)


def _with_validation(splits: dict[str, Split], root: Path, kept_in: Path, share: float | None) -> dict[str, Split]:
    """The splits with a val split, which is a share of the train split if `share` is given."""
    has = ', '.join(f'{name} ({split.file})' for name, split in splits.items())
    if 'train' not in splits:
        raise ValueError(f'{root} has no train split; it has {has or "none"}. Put train into the name of the file '
                         'or the folder of the pictures to train on')
    if share is None and 'val' not in splits:
        raise ValueError(f'{root} has no val split to evaluate the detector on; it has {has}. --val-share 0.2 '
                         'takes a fifth of the train split, or add the annotations of other pictures, with val or '
                         'valid in the name of the file or its folder')
    if share is None:
        return {name: splits[name] for name in ('train', 'val', 'test') if name in splits}
    if 'val' in splits:
        raise ValueError(f'{root} has a val split ({splits["val"].file}), so that --val-share {share:g} would divide '
                         'the train split for nothing; leave --val-share out')
    train = splits['train']
    originals = {image['id']: original_name(str(image['file_name'])) for image in train.content['images']}
    ranked = sorted(set(originals.values()), key=lambda name: hashlib.sha256(name.encode()).digest())
    count = round(share * len(ranked)) or 1
    if not 0 < share < 1 or count >= len(ranked):
        raise ValueError(f'--val-share {share:g} of {len(ranked)} pictures leaves no picture on one of the sides; give '
                         'a share between 0 and 1, such as 0.2')
    val = set(ranked[:count])
    chosen = {id_ for id_, name in originals.items() if name in val}

    def part(name: str, is_val: bool) -> Split:
        content = {**train.content, **{key: [item for item in train.content[key] if (item[id_] in chosen) == is_val]
                                       for key, id_ in (('images', 'id'), ('annotations', 'image_id'))}}
        return Split(content, train.pictures, kept_in / f'instances_{name}.json')

    return {**splits, 'train': part('train', False), 'val': part('val', True)}


def _classes_with_boxes(splits: dict[str, Split], root: Path) -> tuple[str, ...]:
    names: dict[str, None] = {}  # in the order of the files
    boxes: dict[str, Counter[str]] = {}
    for of_split, split in splits.items():
        of_id = {category['id']: str(category['name']) for category in split.content['categories']}
        names.update(dict.fromkeys(of_id.values()))
        boxes[of_split] = Counter(of_id[annotation['category_id']] for annotation in split.content['annotations'])
    classes = [name for name in names if any(count[name] for count in boxes.values())]
    if not classes:
        raise ValueError(f'{root} has no box in any split; give a folder with annotated pictures')
    unused = ', '.join(name for name in names if name not in classes)
    if unused:
        _logger.info('%s: no picture has a box of %s; these classes are left out', root, unused)
    for described in nearly_equal(classes):
        _logger.warning('%s: the classes %s; each is a class of its own', root, described)
    unlearned = ', '.join(name for name in classes if not boxes['train'][name])
    if unlearned:
        _logger.warning('%s: the train split has no box of %s, which the detector therefore cannot learn', root,
                        unlearned)
    return class_names(classes, str(root))
