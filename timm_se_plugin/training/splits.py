"""The splits of the data, as timm's data sets."""

import logging
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import compress
from pathlib import Path
from typing import Any
from unicodedata import normalize

from filelock import FileLock
from timm.data import ImageDataset, create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder

from ..weights.folders import named_by_number
from .folders import SPLITS, closest, read_class_map, read_folder, read_tar, share_of, shared_pictures
from .labels import LabelTarget, read_labels, share_of_labels

__all__ = [
    'STREAMS', 'batch_size_of', 'check_splits', 'class_names', 'label_by_name', 'number_of_classes', 'open_split',
    'split_file', 'split_root']

_logger = logging.getLogger(__name__)
_SOURCES = ('torch', 'hfds', 'hfids', 'tfds', 'wds')  # of data sets, in timm
# The options that name the columns of a data set, and timm's defaults.
_COLUMNS = {'input_key': 'image', 'target_key': 'label'}
STREAMS = ('wds', 'hfids', 'tfds')  # sources without random access, which are read in order


def batch_size_of(options: Namespace, training: bool) -> int:
    """Number of images in a batch of this process."""
    return options.batch_size if training else options.validation_batch_size or options.batch_size


def open_split(options: Namespace, split: str, training: bool) -> Any:
    """A split of the data, as timm's data set.

    Args:
        options: the run's options.
        split: name of the split: of a folder or a tar file in ``--data-dir``, or in ``--dataset``.
        training: whether the split is for training.

    Raises:
        ValueError: an unknown source, no data, no such split, pictures without a class, or a class map that does not
            fit the folders.
    """
    _check_source(options)
    class_map = read_class_map(options.class_map) if options.class_map else None
    if options.dataset:
        return _open_dataset(options, split, training, class_map)
    if options.task == 'multilabel':
        return _open_labels(options, split)
    if options.val_share:
        return ImageDataset(options.data_dir, _shared_folder(options, split, class_map))
    root = split_root(Path(options.data_dir), split)
    return ImageDataset(root, (read_tar if root.endswith('.tar') else read_folder)(root, class_map))


def _check_source(options: Namespace) -> None:
    """Raise if there is no such source of data, or if it does not have what other options ask for."""
    root = options.data_dir
    source, _, name = options.dataset.partition('/')
    is_torch = source.lower() == 'torch'
    if not options.dataset and not (root and Path(root).exists()):
        found = f'there is nothing at --data-dir {root}' if root else 'no data is given'
        raise ValueError(f'{found}; --data-dir takes the folder of the data, --dataset the name of a data set')
    if options.dataset and not (source.lower() in _SOURCES and name):
        raise ValueError(f'--dataset {options.dataset} is not a data set; name one as '
                         f'{", ".join(f"{source}/NAME" for source in _SOURCES)}, or none for folders and tar files')
    if any(getattr(options, column) for column in _COLUMNS) and (not options.dataset or is_torch):
        raise ValueError('--input-key and --target-key are for data sets with columns, and '
                         f'{options.dataset or "a folder"} has none')
    if options.task == 'multilabel' and (options.dataset or options.class_map):
        raise ValueError('--task multilabel reads the CSV files of --data-dir, whose columns are the labels; leave '
                         f'out {"--dataset" if options.dataset else "--class-map"}')
    if options.dataset and options.val_share:
        raise ValueError(f'--val-share {options.val_share} is for a folder of classes, and --dataset {options.dataset} '
                         'names its splits by --train-split and --val-split; give --val-share 0')
    if options.class_map and is_torch:
        raise ValueError(f'--class-map has no effect on {options.dataset}, whose classes torchvision gives; leave out '
                         '--class-map')
    if not root and is_torch:
        raise ValueError(f'--dataset {options.dataset} needs --data-dir: the folder that the data is in, or is to be '
                         'downloaded to')


def _open_dataset(options: Namespace, split: str, training: bool, class_map: Mapping[str, int] | None) -> Any:
    """A split of ``--dataset``."""
    source, _, name = options.dataset.partition('/')
    source = source.lower()
    arguments = {column: getattr(options, column) for column in _COLUMNS if getattr(options, column)}
    if source in STREAMS:
        arguments |= {'batch_size': batch_size_of(options, training), 'seed': options.seed,
                      'num_samples': options.train_num_samples if training else options.val_num_samples}
    if source == 'hfds':  # before timm casts the column of the images, whatever columns there are
        import datasets
        _check_columns(options, datasets.load_dataset(name, split=split, cache_dir=options.data_dir).column_names)
    try:
        with _turn_to_download(options):
            dataset = create_dataset(
                options.dataset, root=options.data_dir, split=split, is_training=training,
                download=options.dataset_download, class_map=class_map, **arguments)
    except (AssertionError, RuntimeError) as error:  # as torchvision and timm say that there is no such data
        hint = ('--dataset-download downloads most of these data sets into --data-dir' if source == 'torch' else
                '--train-split, --val-split, --train-num-samples and --val-num-samples say what the data has')
        raise ValueError(f'--dataset {options.dataset} has no split {split!r} in {options.data_dir}: {error}; '
                         f'{hint}') from error
    features: Mapping[str, Any] = {}
    if source == 'hfds':
        features = dataset.reader.dataset.features
    elif source == 'hfids':
        builder = dataset.reader.builder
        features = builder.info.features or next(iter(builder.as_streaming_dataset(split)))  # the first image's values
        _check_columns(options, features)
    target = options.target_key or _COLUMNS['target_key']
    kind = features.get(target)
    if isinstance(kind, str) or 'string' in getattr(kind, 'dtype', ''):
        if class_map is None:
            raise ValueError(f'the column {target!r} of {options.dataset} holds text and no numbers of classes; give '
                             'the names of the classes, one on each line, by --class-map FILE.txt')
        found = dataset.reader.dataset.unique(target) if source == 'hfds' else []  # a stream does not tell
        unknown = [str(name) for name in found if name not in class_map]
        if unknown:
            raise ValueError(f'--class-map {options.class_map} has no class {closest(unknown, list(class_map))}, which '
                             f'the column {target!r} of {options.dataset} has; write each class into the file')
    return dataset


def _turn_to_download(options: Namespace) -> AbstractContextManager:
    """Let one process of a run download at a time; the next one then finds the data.

    torchvision writes into the final file, which another process would take for a broken one and write anew.
    """
    if not (options.dataset_download and options.data_dir):
        return nullcontext()
    folder = Path(options.data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # In a folder that may only be read, the data has to be there already.
    return FileLock(folder / '.download.lock') if os.access(folder, os.W_OK) else nullcontext()


def _shared_folder(options: Namespace, split: str, class_map: Mapping[str, int] | None) -> ReaderImageFolder:
    """Reader of a folder of classes: for the validation split of ``--val-share``, for others of the other pictures."""
    root = options.data_dir
    if not Path(root).is_dir():
        raise ValueError(f'--val-share {options.val_share} is for a folder of classes, and {root} is a file; give '
                         '--val-share 0, or unpack the file')
    if split_root(Path(root), options.val_split) != str(Path(root)):
        raise ValueError(f'--val-share {options.val_share} is for a folder of classes, and {root} has a split '
                         f'{options.val_split!r} already; give --val-share 0')
    reader = read_folder(root, class_map)
    chosen = share_of(reader.samples, root, options.val_share, options.val_share_seed)
    reader.samples = _part(options, reader.samples, chosen, split)
    return reader


def _part(options: Namespace, samples: Sequence[Any], chosen: Sequence[bool], split: str) -> list[Any]:
    """The samples of a split of ``--val-share``; an evaluation names by ``--val-split train`` those that train."""
    inside = split == options.val_split and split not in SPLITS[0]
    return [*compress(samples, (each == inside for each in chosen))]


def _open_labels(options: Namespace, split: str) -> ImageDataset:
    """A split of pictures with labels: from its own CSV file, or by ``--val-share`` from one for all splits."""
    reader = read_labels(split_file(Path(options.data_dir), split))
    share = options.val_share
    if share and not Path(options.data_dir).is_file():
        raise ValueError(f'--val-share {share} is for one CSV file, and --data-dir {options.data_dir} is a folder with '
                         'a file for each split; give --val-share 0, or name one of the files by --data-dir')
    if share:
        chosen = share_of_labels(reader, share, options.val_share_seed)
        reader.samples = _part(options, reader.samples, chosen, split)
    size = len(reader.class_to_idx)
    return ImageDataset(reader.root, reader, target_transform=LabelTarget(tuple(range(size)), size))


def _check_columns(options: Namespace, columns: Iterable[str]) -> None:
    for option, default in _COLUMNS.items():
        key = getattr(options, option) or default
        # For timm, a comma separates several columns, and a slash a column from its field.
        if key not in columns and not set(key) & set(',/'):
            raise ValueError(f'{options.dataset} has no column {key!r}, which --{option.replace("_", "-")} names; its '
                             f'columns are {", ".join(columns)}')


def label_by_name(dataset: Any, names: Sequence[str] | None, split: str) -> None:
    """Make the targets of a data set indices into `names`, whatever the order of the data set's own classes.

    Args:
        dataset: result of :func:`open_split`, in which some of the classes may be absent.
        names: names of the model's classes; with None, the targets stay as they are.
        split: name of the split, for messages.

    Raises:
        ValueError: a class of the data is not among `names`.
    """
    found = class_names(dataset)
    if not found or names is None or found == list(names):
        return
    # macOS writes an accent as a character of its own.
    found, names = ([normalize('NFC', name) for name in each] for each in (found, names))
    # Of two classes of one name, the second has none, and earlier versions called it by its number.
    indices = {name: index for index, name in reversed([*enumerate(names)])}
    unknown = [name for name in found if name not in indices]
    is_multilabel = isinstance(getattr(dataset, 'target_transform', None), LabelTarget)
    if unknown:
        raise ValueError(
            f'the split {split} has classes that the model does not know: {closest(unknown, names)}; the model knows '
            f'{", ".join(names[:10])}{" …" if len(names) > 10 else ""}. Rename or remove the unknown classes'
            f'{"" if is_multilabel else ", or give each class of the data its index by --class-map"}')
    order = [indices[name] for name in found]
    dataset.target_transform = LabelTarget(tuple(order), len(names)) if is_multilabel else order.__getitem__
    dataset.label_names = names
    absent = sorted(indices.keys() - set(found))
    if absent:
        _logger.info('the split %s has no images of %d of the %d classes: %s', split, len(absent), len(names),
                     closest(absent, []))


def split_root(root: Path, split: str) -> str:
    """The tar file or the folder of a split; `root` itself where this holds no splits.

    Raises:
        ValueError: `root` holds only other splits, or is another kind of file, or the split is a slice.
    """
    if '[' in split:  # which timm ignores: the whole folder would be read
        raise ValueError(f'a slice such as {split} is for data sets of tfds/ and hfds/, and {root} is read as a whole')
    names = (split, *next((names for names in SPLITS if split in names), ()))
    found = [path for path in (*(root / f'{name}.tar' for name in names), *(root / name for name in names))
             if path.exists()]
    if found:
        others = [path.name for path in found if path.resolve() != found[0].resolve()]
        if others:
            _logger.warning('the split %s is read from %s, and not from %s beside it', split, found[0],
                            ', '.join(others))
        return str(found[0])
    if root.is_file() and root.suffix != '.tar':
        raise ValueError(f'--data-dir {root} is neither a folder nor a tar file; --task multilabel reads a CSV file')
    # A folder without folders in it is a class, even one named train.
    others = [name for names in SPLITS for name in names
              if (root / name).is_dir() and any(entry.is_dir() for entry in (root / name).iterdir())]
    if others:
        raise ValueError(f'{root} has no split {split!r}; it has {", ".join(others)}. Give the name of a split that it '
                         f'has, or evaluate on a fifth of {others[0]} by --data-dir {root / others[0]} --val-share 0.2')
    return str(root)


def split_file(root: Path, split: str) -> str:
    """The CSV file of a split; `root` itself where this is a file.

    Raises:
        ValueError: there is no such file, or `root` is another kind of file.
    """
    if root.is_file():
        if root.suffix.lower() != '.csv':
            raise ValueError(f'--data-dir {root} is neither a folder nor a CSV file; --task multilabel needs one')
        return str(root)
    names = (split, *next((names for names in SPLITS if split in names), ()))
    found = [path for name in names if (path := root / f'{name}.csv').is_file()]
    if not found:
        raise ValueError(f'{root} has no {split}.csv; --task multilabel needs a CSV file for each split, with the path '
                         'of a picture and then a column of 0 and 1 for each label')
    return str(found[0])


def class_names(dataset: Any) -> list[str] | None:
    """Names of the classes in the order of their indices; None if the data set has no names."""
    if hasattr(dataset, 'label_names'):
        return list(dataset.label_names)
    for source in (dataset, getattr(dataset, 'reader', None)):
        for attribute in ('class_to_idx', 'class_name_to_idx'):
            indices = getattr(source, attribute, None)
            if indices:
                names: dict[int, list[str]] = {}
                for name, index in indices.items():  # a class map can give several folders the same index
                    names.setdefault(int(index), []).append(str(name))
                return named_by_number({index: '|'.join(of_index) for index, of_index in names.items()})
    return None


def number_of_classes(options: Namespace, train_data: Any) -> int:
    """``--num-classes``, or without that option the number of classes of the training data.

    Raises:
        ValueError: the data has more classes than ``--num-classes``, neither gives their number, or there is only one.
    """
    names = class_names(train_data)
    if options.num_classes is None and not names:
        raise ValueError('this data has no names of classes; give the number of its classes by --num-classes')
    found = len(names or ())
    count = found if options.num_classes is None else options.num_classes
    if found > count:
        raise ValueError(f'--num-classes {count} is too few: the data has {found}')
    if 0 < found < count and options.task == 'multilabel':
        raise ValueError(f'--num-classes {count} is more than the {found} labels of the data')
    if count == 1 and options.task == 'classification':
        raise ValueError(f'the data has only one class{f", {names[0]!r}" if names else ""}, to which every picture '
                         'belongs, so that there is nothing to learn; put the pictures of each class into a folder of '
                         'their own, or train a label that a picture may have or not by --task multilabel')
    return count


def check_splits(options: Namespace, train_data: Any, val_data: Any) -> None:
    """Refuse two splits that are the same images, and warn of pictures that are in both.

    Args:
        options: the run's options.
        train_data: of :func:`open_split`.
        val_data: of :func:`open_split`.

    Raises:
        ValueError: both splits are the same folder or file, although their names differ.
    """
    if options.dataset or options.val_share or options.train_split == options.val_split:
        return
    train, validation = train_data.reader, val_data.reader
    if train.root == validation.root:
        is_file = Path(options.data_dir).is_file()
        lack = 'is one file' if is_file else (
            f'has no folders or tar files named {options.train_split} and {options.val_split}')
        unpack = 'unpack it and ' if is_file and options.task != 'multilabel' else ''  # --val-share takes no tar file
        raise ValueError(
            f'{options.data_dir} {lack}, so that the same images would train and validate; {unpack}give --val-share '
            '0.2 to evaluate on a fifth of each class, or by --data-dir the folder that holds both splits, and by '
            '--train-split and --val-split their names')
    if isinstance(train, ReaderImageFolder) and isinstance(validation, ReaderImageFolder):
        shared, looked = shared_pictures(train, validation)
        if shared:
            _logger.warning('%d of %d validation pictures that were compared are also trained on, so that the metrics '
                            'do not say how the network does on new pictures', shared, looked)
