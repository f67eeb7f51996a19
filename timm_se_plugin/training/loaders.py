"""Loaders that can start at any batch of any epoch."""

import multiprocessing
import os
import signal
import threading
from argparse import Namespace
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from torchvision.transforms import Compose

from ..files.pictures import Picture
from .augmentation import Transforms, train_transforms
from .images import Batches, Images, UnreadableImageError, seed_of
from .process import Process
from .splits import batch_size_of

__all__ = ['Loader', 'eval_loader', 'train_loader']


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
            self.dataset, self.options.num_classes, batch_size=batch_size_of(self.options, self.training),
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
    batches = Batches(range(len(dataset)), batch_size_of(options, training=False), process)
    images = Images(
        dataset, picture, by_epoch, options.seed, options.corrupt_images, options.cache_images, replace=False)
    return Loader(images, config, options, process, batches, by_epoch, training=False)
