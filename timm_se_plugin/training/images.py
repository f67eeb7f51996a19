"""Images and batches that depend only on the seed, the epoch and the position in the epoch."""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from ..files.pictures import Picture
from .labels import LabelTarget
from .process import Process

__all__ = ['Batches', 'Images', 'UnreadableImageError', 'seed_of']

_logger = logging.getLogger(__name__)
_TRIES = 10  # the most unreadable images in a row, as in timm

Draw = tuple[int, int, int]  # epoch, position in the epoch, index of the image


class UnreadableImageError(RuntimeError):
    """An image cannot be read; the message names the file."""


def seed_of(*numbers: int) -> int:
    """A seed below 2^32 from a few integers, such that similar integers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def _restored_randomness() -> Iterator[None]:
    """Restore the random generators after the block: without workers, images are loaded between training steps."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Images(Dataset):
    """Images of a map-style data set of timm, each augmented with random numbers of its own.

    The generators are seeded for each image by the seed of the run, the epoch and the position in the epoch. The number
    of workers, the number of processes and an interruption of the run therefore change no image.

    Args:
        dataset: result of :func:`timm.data.create_dataset`.
        picture: conversion of each image before the transforms.
        transforms: gives the transform of an epoch, from a PIL image to an array or tensor.
        seed: seed of the run.
        corrupt: ``'fail'`` raises at an unreadable image; ``'skip'`` logs its name and goes on.
        keep: whether decoded images are kept in memory, in each worker.
        replace: whether the next image replaces a skipped one; otherwise a blank image with the target -1 (for each
            label, if there are several) does, since no image may count twice.
    """

    def __init__(
            self, dataset: Any, picture: Picture, transforms: Callable[[int], Any], seed: int, corrupt: str, keep: bool,
            replace: bool,
    ) -> None:
        self.dataset, self.picture, self.transforms, self.seed = dataset, picture, transforms, seed
        self.corrupt, self.replace = corrupt, replace
        self.kept: dict[int, tuple[Image.Image, Any]] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[Any, Any]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[tuple[Any, Any]]:
        with _restored_randomness():
            return [self._draw(*draw) for draw in draws]

    def name(self, index: int) -> str:
        """File name of an image; its index where the data set has no file names."""
        try:
            return str(self.dataset.filename(index))
        except (AttributeError, AssertionError, NotImplementedError):  # data sets of torchvision and Hugging Face
            return f'image {index}'

    def _draw(self, epoch: int, position: int, index: int) -> tuple[Any, Any]:
        """The transformed image at a position of an epoch, and its target."""
        for _ in range(_TRIES):
            try:
                image, target = self._image(index)
                return self._transformed(image, epoch, position), target
            except MemoryError:
                raise
            except Exception as error:  # a broken file makes PIL raise exceptions of many classes
                message = f'{self.name(index)} cannot be read: {error}'
                if self.corrupt == 'fail':
                    raise UnreadableImageError(f'{message}; --corrupt-images skip leaves it out') from error
                _logger.warning('%s; it is left out', message)
            if not self.replace:
                labels = getattr(self.dataset, 'target_transform', None)
                unknown = labels.unknown if isinstance(labels, LabelTarget) else -1
                return self._transformed(Image.new(self.picture.mode, (32, 32)), epoch, position), unknown
            index = (index + 1) % len(self.dataset)
        raise UnreadableImageError(f'{_TRIES} images in a row cannot be read; the last: {message}')

    def _transformed(self, image: Image.Image, epoch: int, position: int) -> Any:
        seed = seed_of(self.seed, epoch, position)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        return self.transforms(epoch)(image)

    def _image(self, index: int) -> tuple[Image.Image, Any]:
        if self.kept is None:
            return self._read(index)
        if index not in self.kept:
            self.kept[index] = self._read(index)
        return self.kept[index]

    def _read(self, index: int) -> tuple[Image.Image, Any]:
        if not hasattr(self.dataset, 'reader'):  # a data set of torchvision
            image, target = self.dataset[index]
            return self.picture(image), int(target)
        file, target = self.dataset.reader[index]  # dataset[index] would replace an unreadable image by the next one
        change = self.dataset.target_transform or int
        with file:
            picture = self.picture(Image.open(file))
        if isinstance(change, LabelTarget):
            return picture, change(target)
        return picture, -1 if target is None else change(int(target))


class Batches(Sampler[list[Draw]]):
    """Batches of draws of one process; ``epoch`` and ``start``, the first batch, are set before each pass.

    Args:
        order: indices of the images of all processes in an epoch, which are dealt out to the processes one by one; its
            method ``set_epoch``, if there is one, shuffles the images anew.
        batch_size: images in a batch of this process.
        process: this process.
        whole: if not 0, a smaller last batch is left out, and so are the last batches that do not fill a group of
            `whole` batches.
    """

    def __init__(self, order: Any, batch_size: int, process: Process, whole: int = 0) -> None:
        self.order, self.batch_size, self.process, self.whole = order, batch_size, process, whole
        self.epoch = self.start = 0

    def __len__(self) -> int:
        if self.whole:  # each process has the same number of batches
            return len(self.order) // (self.batch_size * self.whole * self.process.world_size) * self.whole
        return -(-len(self._positions()) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = self._draws()
        for batch in range(self.start, len(self)):
            yield draws[batch * self.batch_size:(batch + 1) * self.batch_size]

    def indices(self, batch: int) -> list[int]:
        """Indices of the images in a batch of the current epoch."""
        return [index for _, _, index in self._draws()[batch * self.batch_size:(batch + 1) * self.batch_size]]

    def _draws(self) -> list[Draw]:
        if hasattr(self.order, 'set_epoch'):
            self.order.set_epoch(self.epoch)
        order = list(self.order)
        return [(self.epoch, position, int(order[position])) for position in self._positions()]

    def _positions(self) -> range:
        return range(self.process.rank, len(self.order), self.process.world_size)
