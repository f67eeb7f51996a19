"""timm's data sets in batches whose content depends on the seed, the epoch and the place in it, and on nothing else."""

import logging
import random
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_data_config
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader, fast_collate
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler
from torchvision import transforms

from .place import Place

__all__ = [
    'Batches', 'Images', 'Loader', 'UnreadableImageError', 'class_names', 'data_config', 'eval_loader', 'open_split',
    'seed_of', 'train_loader']

_logger = logging.getLogger(__name__)
_SYNONYMS = {'train': ('train', 'training'), 'validation': ('validation', 'val', 'valid', 'eval', 'evaluation')}
_TRIES = 10  # unreadable images in a row that are passed over, as many as timm's

Draw = tuple[int, int, int]  # epoch, place in the epoch, index of the image


class UnreadableImageError(RuntimeError):
    """An image that cannot be read, with its name."""


def seed_of(*numbers: int) -> int:
    """A seed below 2^32 for any few numbers, in which near ones are not near."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def _randomness_apart() -> Iterator[None]:
    """Leave the process's random generators as they were: with no workers the loading runs between training steps."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Images(Dataset):
    """Images of a map-style data set of timm, each augmented with randomness of its own.

    That of a drawn image is seeded by the seed, the epoch and the place in the epoch: the number of workers, the number
    of processes and where a run was interrupted do not change it.

    Args:
        dataset: what :func:`timm.data.create_dataset` gave.
        transform: from a PIL image to an array or tensor.
        seed: of the run.
        corrupt: ``'fail'`` raises at an unreadable image; ``'skip'`` names it and takes the next one.
        keep: keep decoded images in memory (of each worker).
        replace: whether a skipped image is replaced by the next; else its target is -1, so that nothing counts twice.
    """

    def __init__(self, dataset: Any, transform: Any, seed: int, corrupt: str, keep: bool, replace: bool) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.corrupt, self.replace = corrupt, replace
        self.kept: dict[int, tuple[Image.Image, int]] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[Any, int]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[tuple[Any, int]]:
        items = []
        with _randomness_apart():
            for epoch, place, index in draws:
                image, target = self._image(index)
                seed = seed_of(self.seed, epoch, place)
                random.seed(seed)
                np.random.seed(seed)
                torch.default_generator.manual_seed(seed)
                items.append((self.transform(image), target))
        return items

    def name(self, index: int) -> str:
        """File of an image, where the data set knows it."""
        try:
            return str(self.dataset.filename(index))
        except (AttributeError, AssertionError, NotImplementedError):
            return f'image {index}'

    def _image(self, index: int) -> tuple[Image.Image, int]:
        if self.kept is None:
            return self._load(index)
        if index not in self.kept:
            self.kept[index] = self._load(index)
        return self.kept[index]

    def _load(self, index: int) -> tuple[Image.Image, int]:
        for _ in range(_TRIES):
            try:
                return self._read(index)
            except (OSError, SyntaxError, EOFError) as error:  # what PIL says to broken files
                message = f'{self.name(index)} cannot be read: {error}'
                if self.corrupt == 'fail':
                    raise UnreadableImageError(f'{message} (--corrupt-images skip goes on without it)') from error
                _logger.warning('%s; skipped', message)
            if not self.replace:
                return Image.new('RGB', (32, 32)), -1
            index = (index + 1) % len(self.dataset)
        raise UnreadableImageError(f'{_TRIES} images in a row cannot be read, the last is {self.name(index)}')

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if not hasattr(self.dataset, 'reader'):  # torchvision's
            image, target = self.dataset[index]
            return image, int(target)
        file, target = self.dataset.reader[index]  # not dataset[index], which skips without a name
        with file:
            return Image.open(file).convert(self.dataset.input_img_mode), -1 if target is None else int(target)


class Batches(Sampler[list[Draw]]):
    """Batches of draws of one process; ``epoch`` and ``start``, the first batch, are set before each pass.

    Args:
        order: indices of this process in an epoch; one with ``set_epoch`` is shuffled anew in each.
        batch_size: of this process.
        place: this process among all.
        whole: leave out a smaller last batch, and the last ones that do not fill a group of `whole` batches.
    """

    def __init__(self, order: Any, batch_size: int, place: Place, whole: int = 0) -> None:
        self.order, self.batch_size, self.place, self.whole = order, batch_size, place, whole
        self.epoch = self.start = 0

    def __len__(self) -> int:
        if self.whole:
            return len(self.order) // self.batch_size // self.whole * self.whole
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = self._draws()
        for batch in range(self.start, len(self)):
            yield draws[batch * self.batch_size:(batch + 1) * self.batch_size]

    def indices(self, batch: int) -> list[int]:
        """Images of a batch of the present epoch."""
        return [index for _, _, index in self._draws()[batch * self.batch_size:(batch + 1) * self.batch_size]]

    def _draws(self) -> list[Draw]:
        if hasattr(self.order, 'set_epoch'):
            self.order.set_epoch(self.epoch)
        rank, world_size = self.place.rank, self.place.world_size
        return [(self.epoch, rank + world_size * i, int(index)) for i, index in enumerate(self.order)]


class Loader:
    """Batches on the device, normalised by timm's prefetcher, from any batch of any epoch on.

    Args:
        dataset: :class:`Images`, or a stream of timm.
        config: timm's data configuration of the model.
        options: of the run.
        place: this process among all.
        batches: of a map-style data set.
        training: whether a stream is one for training.
    """

    def __init__(
            self, dataset: Any, config: dict[str, Any], options: Namespace, place: Place,
            batches: Batches | None, training: bool,
    ) -> None:
        self.dataset, self.config, self.options, self.place = dataset, config, options, place
        self.batches, self.training = batches, training
        self._loader: Any = None

    def __len__(self) -> int:
        if self.batches is not None:
            return len(self.batches)
        count = len(self._stream_loader(0))
        whole = self.options.grad_accum_steps
        return count // whole * whole if self.training else count

    def __call__(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches `start` and on of an epoch: images (N, C, H, W) and targets (N)."""
        if self.batches is None:
            if not (self.training or self.place.primary):
                return
            self.dataset.set_epoch(epoch)
            yield from islice(self._prefetched(self._stream_loader(epoch)), start, len(self) if self.training else None)
            return
        self.batches.epoch, self.batches.start = epoch, start
        if self._loader is None:
            self._loader = self._prefetched(DataLoader(
                self.dataset, batch_sampler=self.batches, persistent_workers=self.options.workers > 0,
                num_workers=self.options.workers, **self._common(0)))
        yield from self._loader

    def names(self, batch: int) -> str:
        """Images of a batch, to say which they were."""
        if self.batches is None:
            return f'batch {batch} of the stream'
        names = [self.dataset.name(index) for index in self.batches.indices(batch)]
        return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')

    def _common(self, seed: int) -> dict[str, Any]:
        return {
            'collate_fn': fast_collate, 'pin_memory': self.options.pin_mem,
            'generator': torch.Generator().manual_seed(seed)}  # else the loader draws from the process's

    def _stream_loader(self, epoch: int) -> DataLoader:
        # A stream's randomness is its worker's: fresh ones for each epoch, so that an interrupted one can be repeated.
        return DataLoader(
            self.dataset, batch_size=_batch_size(self.options, self.training), drop_last=self.training,
            num_workers=max(1, self.options.workers), worker_init_fn=_seed_numpy,
            **self._common(seed_of(self.options.seed, epoch, self.place.rank)))

    def _prefetched(self, loader: DataLoader) -> PrefetchLoader:
        return PrefetchLoader(
            loader, mean=self.config['mean'], std=self.config['std'], channels=self.config['input_size'][0],
            device=self.place.device, img_dtype=getattr(torch, self.options.model_dtype))


def _seed_numpy(worker: int) -> None:
    np.random.seed(torch.initial_seed() % 2 ** 32)


def _batch_size(options: Namespace, training: bool) -> int:
    return options.batch_size if training else options.validation_batch_size or options.batch_size


def open_split(options: Namespace, split: str, training: bool) -> Any:
    """A split of the data, by timm; of a folder with tar files, that of the split.

    Raises:
        ValueError: no data there.
    """
    root = options.data_dir
    if not options.dataset and root:
        tars = [Path(root, f'{name}.tar') for name in _SYNONYMS.get(split, (split,))]
        root = next((str(tar) for tar in tars if tar.is_file()), root)
    if not options.dataset and not (root and Path(root).exists()):
        raise ValueError(f'no data at {root!r}; --data-dir says where it is, or --dataset what')
    streams = {'batch_size': _batch_size(options, training), 'seed': options.seed,
               'num_samples': options.train_num_samples if training else options.val_num_samples}
    dataset = create_dataset(
        options.dataset, root=root, split=split, is_training=training, download=options.dataset_download,
        class_map=options.class_map, **(streams if _is_stream(options.dataset) else {}))
    if not _is_stream(options.dataset) and not len(dataset):
        raise ValueError(f'no images in {root!r}')
    return dataset


def _is_stream(name: str) -> bool:
    return name.partition('/')[0].lower() in ('wds', 'hfids', 'tfds') and '/' in name


def class_names(dataset: Any) -> list[str] | None:
    """Names of the classes in the order of their indices, where the data set knows them."""
    for source in (dataset, getattr(dataset, 'reader', None)):
        for attribute in ('class_to_idx', 'class_name_to_idx'):
            names = getattr(source, attribute, None)
            if names:
                return [str(name) for name, _ in sorted(names.items(), key=lambda item: item[1])]
    return None


def data_config(options: Namespace, model: nn.Module) -> dict[str, Any]:
    """timm's data configuration: the options over those of the model."""
    return resolve_data_config(vars(options), model=model)


def train_loader(options: Namespace, dataset: Any, config: dict[str, Any], place: Place) -> Loader:
    """Shuffled, augmented batches; each process sees its own images.

    Raises:
        ValueError: fewer images than one step takes.
    """
    transform = _train_transform(options, config)
    if isinstance(dataset, IterableDataset):
        stream: Any = dataset
        stream.transform = transform
        stream.set_loader_cfg(num_workers=max(1, options.workers))
        return Loader(stream, config, options, place, None, training=True)
    order: Any
    if options.aug_repeats:
        order = RepeatAugSampler(
            dataset, num_replicas=place.world_size, rank=place.rank, num_repeats=options.aug_repeats)
    else:
        order = DistributedSampler(dataset, num_replicas=place.world_size, rank=place.rank, seed=options.seed)
    batches = Batches(order, options.batch_size, place, whole=options.grad_accum_steps)
    if not len(batches):
        step = options.batch_size * options.grad_accum_steps * place.world_size
        raise ValueError(f'{len(dataset)} training images do not fill one step of {step}')
    images = Images(dataset, transform, options.seed, options.corrupt_images, options.cache_images, replace=True)
    return Loader(images, config, options, place, batches, training=True)


def eval_loader(options: Namespace, dataset: Any, config: dict[str, Any], place: Place) -> Loader:
    """Every image once, over all processes; nothing is padded, so nothing counts twice."""
    size = config['input_size'][-2:]
    transform = create_transform(
        size if size[0] != size[1] else size[0], is_training=False, interpolation=config['interpolation'],
        mean=config['mean'], std=config['std'], crop_pct=config['crop_pct'], crop_mode=config['crop_mode'],
        use_prefetcher=True)
    if isinstance(dataset, IterableDataset):
        stream: Any = dataset
        # Among several processes timm's readers even out their shares, so that images count twice or not at all. One
        # process reads them all.
        stream.reader.dist_rank, stream.reader.dist_num_replicas = 0, 1
        stream.transform = transform
        stream.set_loader_cfg(num_workers=max(1, options.workers))
        return Loader(stream, config, options, place, None, training=False)
    order = range(place.rank, len(dataset), place.world_size)
    batches = Batches(order, _batch_size(options, training=False), place)
    images = Images(dataset, transform, options.seed, options.corrupt_images, options.cache_images, replace=False)
    return Loader(images, config, options, place, batches, training=False)


def _train_transform(options: Namespace, config: dict[str, Any]) -> Any:
    size = config['input_size'][-2:]
    if options.train_crop_mode == 'pad' and not options.no_aug:
        # He et al., 2015 (arXiv 1512.03385), section 4.2. timm has no such crop.
        return transforms.Compose([
            transforms.Resize(size), transforms.RandomCrop(size, padding=options.crop_padding),
            transforms.RandomHorizontalFlip(options.hflip), transforms.PILToTensor()])
    return create_transform(
        size if size[0] != size[1] else size[0], is_training=True, no_aug=options.no_aug,
        train_crop_mode=options.train_crop_mode if options.train_crop_mode != 'pad' else None, scale=options.scale,
        ratio=options.ratio, hflip=options.hflip, vflip=options.vflip, color_jitter=options.color_jitter,
        auto_augment=options.aa, interpolation=options.interpolation or 'random', mean=config['mean'],
        std=config['std'], use_prefetcher=True)
