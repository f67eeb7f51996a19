"""Images and batches that depend on the seed, the epoch and the position in it, and on nothing else."""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from .process import Process

__all__ = ['Batches', 'Images', 'UnreadableImageError', 'seed_of']

_logger = logging.getLogger(__name__)
_TRIES = 10  # unreadable images in a row that are passed over, as in timm

Draw = tuple[int, int, int]  # epoch, position in the epoch, index of the image


class UnreadableImageError(RuntimeError):
    """An image cannot be read; the message has its name."""


def seed_of(*numbers: int) -> int:
    """A seed below 2^32 from a few integers, such that similar integers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def _randomness_apart() -> Iterator[None]:
    """Restore the process's random generators: without workers, images are loaded between the steps of the training."""
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
        dataset: what :func:`timm.data.create_dataset` returned.
        transforms: gives the transform of an epoch, from a PIL image to an array or tensor.
        seed: of the run.
        corrupt: ``'fail'`` raises at an unreadable image; ``'skip'`` logs its name and goes on.
        keep: whether decoded images are kept in memory, in each worker.
        replace: whether the next image replaces a skipped one; otherwise a blank image with the target -1 does, so that
            no image counts twice.
    """

    def __init__(
            self, dataset: Any, transforms: Callable[[int], Any], seed: int, corrupt: str, keep: bool, replace: bool,
    ) -> None:
        self.dataset, self.transforms, self.seed = dataset, transforms, seed
        self.corrupt, self.replace = corrupt, replace
        self.kept: dict[int, tuple[Image.Image, int]] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> tuple[Any, int]:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[tuple[Any, int]]:
        items = []
        with _randomness_apart():
            for epoch, position, index in draws:
                image, target = self._image(index)
                seed = seed_of(self.seed, epoch, position)
                random.seed(seed)
                np.random.seed(seed)
                torch.default_generator.manual_seed(seed)
                items.append((self.transforms(epoch)(image), target))
        return items

    def name(self, index: int) -> str:
        """File name of an image; its index where the data set has no file names."""
        try:
            return str(self.dataset.filename(index))
        except (AttributeError, AssertionError, NotImplementedError):  # data sets of torchvision and Hugging Face
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
            except MemoryError:
                raise
            except Exception as error:  # a broken file makes PIL raise exceptions of many classes
                message = f'{self.name(index)} cannot be read: {error}'
                if self.corrupt == 'fail':
                    raise UnreadableImageError(f'{message}; --corrupt-images skip leaves it out') from error
                _logger.warning('%s; it is left out', message)
            if not self.replace:
                return Image.new(getattr(self.dataset, 'input_img_mode', 'RGB'), (32, 32)), -1
            index = (index + 1) % len(self.dataset)
        raise UnreadableImageError(f'{_TRIES} images in a row cannot be read; the last is {self.name(index)}')

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if not hasattr(self.dataset, 'reader'):  # a data set of torchvision
            image, target = self.dataset[index]
            return image, int(target)
        file, target = self.dataset.reader[index]  # dataset[index] would skip unreadable images without a word
        change = self.dataset.target_transform or int
        with file:
            return Image.open(file).convert(self.dataset.input_img_mode), -1 if target is None else change(int(target))


class Batches(Sampler[list[Draw]]):
    """Batches of draws of one process; ``epoch`` and ``start``, the first batch, are set before each pass.

    Args:
        order: indices of this process's images in an epoch; ``set_epoch``, if there is one, shuffles them anew.
        batch_size: images in a batch of this process.
        process: this process.
        whole: if not 0, a smaller last batch is left out, and so are the last batches that do not fill a group of
            `whole` batches.
    """

    def __init__(self, order: Any, batch_size: int, process: Process, whole: int = 0) -> None:
        self.order, self.batch_size, self.process, self.whole = order, batch_size, process, whole
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
        """Indices of the images in a batch of the present epoch."""
        return [index for _, _, index in self._draws()[batch * self.batch_size:(batch + 1) * self.batch_size]]

    def _draws(self) -> list[Draw]:
        if hasattr(self.order, 'set_epoch'):
            self.order.set_epoch(self.epoch)
        rank, world_size = self.process.rank, self.process.world_size
        return [(self.epoch, rank + world_size * i, int(index)) for i, index in enumerate(self.order)]
