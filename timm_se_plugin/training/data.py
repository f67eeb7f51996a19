"""timm's data sets, and loaders that can start at any batch of any epoch."""

import logging
import multiprocessing
import os
import signal
import threading
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import compress, islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from filelock import FileLock
from timm.data import ImageDataset, create_dataset, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from torchvision.transforms import Compose

from ..files.pictures import Picture
from ..weights.folders import named_by_number
from .augmentation import Transforms, train_transforms
from .folders import SPLITS, closest, read_class_map, read_folder, read_tar, share_of
from .images import Batches, Images, UnreadableImageError, seed_of
from .labels import LabelTarget, read_labels, share_of_labels
from .process import Process

__all__ = [
    'STREAMS', 'Loader', 'class_names', 'eval_loader', 'label_by_name', 'number_of_classes', 'open_split',
    'split_file', 'split_root', 'train_loader']

_logger = logging.getLogger(__name__)
_SOURCES = ('torch', 'hfds', 'hfids', 'tfds', 'wds')  # of data sets, in timm
# The options that name the columns of a data set, and timm's defaults.
_COLUMNS = {'input_key': 'image', 'target_key': 'label'}
STREAMS = ('wds', 'hfids', 'tfds')  # sources without random access, which are read in order


class _CheckedLoader(DataLoader):
    """Batches whose classes the network has, and the error of a worker process without the traceback in its message."""

    def __init__(self, dataset: Any, classes: int | None, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.classes = classes

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # type: ignore[override]
        try:
            for x, y in super().__iter__():
                if self.classes and y.dim() == 1 and y.max() >= self.classes:
                    raise ValueError(
                        f'the data has an image of the class {y.max()}, and --num-classes {self.classes} stands for 0 '
                        f'to {self.classes - 1}; give --num-classes as many as the data has')
                yield x, y
        except UnreadableImageError as error:
            raise UnreadableImageError(str(error).rpartition(f'{UnreadableImageError.__name__}: ')[2].strip()) from None


class Loader:
    """Batches on the device, normalised by timm's prefetcher, from any batch of any epoch on.

    Args:
        dataset: :class:`~timm_se_plugin.training.images.Images`, or one of timm's streams.
        config: timm's data configuration of the model.
        options: the run's options.
        process: this process.
        batches: the indices of each batch of `dataset`; None for a stream.
        transforms: the transform of each epoch, for a stream.
        training: whether the batches are for training.
    """

    def __init__(
            self, dataset: Any, config: dict[str, Any], options: Namespace, process: Process,
            batches: Batches | None, transforms: Transforms, training: bool,
    ) -> None:
        self.dataset, self.config, self.options, self.process = dataset, config, options, process
        self.batches, self.transforms, self.training = batches, transforms, training
        self._loader: Any = None

    def __len__(self) -> int:
        if self.batches is not None:
            return len(self.batches)
        count = len(self._stream_loader(0))
        whole = self.options.grad_accum_steps
        return count // whole * whole if self.training else count

    def __call__(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of an epoch from number `start` on: images (N, C, H, W) and targets (N,), or (N, labels)."""
        for x, y in self._batches_from(epoch, start):
            yield x.contiguous(memory_format=torch.channels_last) if self.options.channels_last else x, y

    def _batches_from(self, epoch: int, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.batches is None:
            if not (self.training or self.process.primary):
                return
            self.dataset.set_epoch(epoch)
            self.dataset.transform = self.transforms(epoch)
            yield from islice(self._prefetched(self._stream_loader(epoch)), start, len(self) if self.training else None)
            return
        self.batches.epoch, self.batches.start = epoch, start
        if self._loader is None:
            self._loader = self._prefetched(_CheckedLoader(
                self.dataset, self.options.num_classes, batch_sampler=self.batches,
                persistent_workers=self.options.workers > 0, num_workers=self.options.workers,
                worker_init_fn=_outlive_sigterm, **self._common(0)))
        yield from self._loader

    def names(self, batch: int) -> str:
        """The images of a batch by name, for an error message."""
        if self.batches is None:
            return f'batch {batch} of the stream'
        names = [self.dataset.name(index) for index in self.batches.indices(batch)]
        return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')

    def _common(self, seed: int) -> dict[str, Any]:
        return {
            'collate_fn': fast_collate, 'pin_memory': self.options.pin_mem,
            # By default, the loader draws from the process's generator, which would change the steps of the training.
            'generator': torch.Generator().manual_seed(seed)}

    def _stream_loader(self, epoch: int) -> DataLoader:
        # A stream draws from the generators of its workers; new workers in each epoch make the epoch repeatable.
        return _CheckedLoader(
            self.dataset, self.options.num_classes, batch_size=_batch_size(self.options, self.training),
            drop_last=self.training, num_workers=max(1, self.options.workers), worker_init_fn=_start_stream_worker,
            **self._common(seed_of(self.options.seed, epoch, self.process.rank)))

    def _prefetched(self, loader: DataLoader) -> PrefetchLoader:
        return PrefetchLoader(
            loader, mean=self.config['mean'], std=self.config['std'], channels=self.config['input_size'][0],
            device=self.process.device, img_dtype=getattr(torch, self.options.model_dtype))


def _outlive_sigterm(worker: int) -> None:
    """Let this worker end only at a SIGTERM from its parent process.

    A scheduler sends SIGTERM to every process of a job; the parent still needs its workers until it has saved.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, 'sigwaitinfo'):  # as on macOS and Windows
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
            pass
        os._exit(0)  # as torch's handler of SIGTERM in a worker does
    threading.Thread(target=wait, daemon=True).start()


def _start_stream_worker(worker: int) -> None:
    _outlive_sigterm(worker)
    np.random.seed(torch.initial_seed() % 2 ** 32)


def _batch_size(options: Namespace, training: bool) -> int:
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
        arguments |= {'batch_size': _batch_size(options, training), 'seed': options.seed,
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


def _picture(options: Namespace, config: dict[str, Any]) -> Picture:
    return Picture.of(config['input_size'][0], options.exif_orientation)


def _prepare_stream(dataset: Any, options: Namespace, picture: Picture, transforms: Transforms) -> Transforms:
    """Prepare a stream; return its transforms, which begin with `picture` instead of timm's conversion."""
    dataset.set_loader_cfg(num_workers=max(1, options.workers))
    tfds = options.dataset.lower().startswith('tfds')  # its reader decodes pictures by itself
    dataset.reader.input_img_mode = picture.mode if tfds else ''
    early, late = (Compose([picture, transform]) for transform in (transforms.early, transforms.late))
    return Transforms(early, late, transforms.switch)


class _Repeats(RepeatAugSampler):
    """timm's order of repeated augmentation, which in timm is the same for every seed."""

    def __init__(self, dataset: Any, repeats: int, seed: int) -> None:
        # By default, timm leaves out images until a multiple of 256 is left, which is half of a set of 511.
        super().__init__(dataset, num_replicas=1, rank=0, num_repeats=repeats, selected_round=0)
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(seed_of(self.seed, epoch))


def train_loader(options: Namespace, dataset: Any, config: dict[str, Any], process: Process) -> Loader:
    """A loader of shuffled, augmented batches for training; each process gets its own images.

    Raises:
        ValueError: fewer images than one update of the weights takes, or repeated augmentation of a stream.
    """
    picture, by_epoch = _picture(options, config), train_transforms(options, config)
    if isinstance(dataset, IterableDataset):
        if options.aug_repeats:
            raise ValueError(f'--aug-repeats {options.aug_repeats} is for data that is not read in order, and '
                             f'{options.dataset} is a stream; leave out --aug-repeats')
        by_epoch = _prepare_stream(dataset, options, picture, by_epoch)
        loader = Loader(dataset, config, options, process, None, by_epoch, training=True)
        _check_update(len(loader), dataset, options, process)
        return loader
    order: Any
    if options.aug_repeats:
        order = _Repeats(dataset, options.aug_repeats, options.seed)
    else:
        order = DistributedSampler(dataset, num_replicas=1, rank=0, seed=options.seed)
    batches = Batches(order, options.batch_size, process, whole=options.grad_accum_steps)
    _check_update(len(batches), dataset, options, process)
    images = Images(
        dataset, picture, by_epoch, options.seed, options.corrupt_images, options.cache_images, replace=True)
    return Loader(images, config, options, process, batches, by_epoch, training=True)


def _check_update(batches: int, dataset: Any, options: Namespace, process: Process) -> None:
    if not batches:
        step = options.batch_size * options.grad_accum_steps * process.world_size
        raise ValueError(f'{len(dataset)} training images are fewer than the {step} of one update '
                         '(--batch-size times --grad-accum-steps times processes); give a smaller --batch-size')


def eval_loader(options: Namespace, dataset: Any, config: dict[str, Any], process: Process) -> Loader:
    """A loader for evaluation: every image goes to exactly one process, and no batch is filled up with other images."""
    transform = create_transform(**config, is_training=False, use_prefetcher=True)
    picture, by_epoch = _picture(options, config), Transforms(transform, transform)
    if isinstance(dataset, IterableDataset):
        stream: Any = dataset
        # timm's readers give several processes equally many images, some of them twice or not at all. Therefore one
        # process evaluates the whole stream.
        stream.reader.dist_rank, stream.reader.dist_num_replicas = 0, 1
        by_epoch = _prepare_stream(stream, options, picture, by_epoch)
        return Loader(stream, config, options, process, None, by_epoch, training=False)
    batches = Batches(range(len(dataset)), _batch_size(options, training=False), process)
    images = Images(
        dataset, picture, by_epoch, options.seed, options.corrupt_images, options.cache_images, replace=False)
    return Loader(images, config, options, process, batches, by_epoch, training=False)
