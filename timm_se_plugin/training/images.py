"""Images and batches whose content depends on the seed, the epoch and the position in it, and on nothing else."""

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
_TRIES = 10  # unreadable images in a row that are passed over, as many as timm's

Draw = tuple[int, int, int]  # epoch, position in the epoch, index of the image


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

    That of a drawn image is seeded by the seed, the epoch and the position in it: the number of workers, the number
    of processes and where a run was interrupted do not change it.

    Args:
        dataset: what :func:`timm.data.create_dataset` gave.
        transforms: by epoch, from a PIL image to an array or tensor.
        seed: of the run.
        corrupt: ``'fail'`` raises at an unreadable image; ``'skip'`` names it and takes the next one.
        keep: keep decoded images in memory (of each worker).
        replace: whether a skipped image is replaced by the next; else its target is -1, so that nothing counts twice.
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
        """File of an image, where the data set knows it."""
        try:
            return str(self.dataset.filename(index))
        except (AttributeError, AssertionError, NotImplementedError):  # torchvision's, timm's streams
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
            except Exception as error:  # PIL's readers let through whatever a broken file makes them raise
                message = f'{self.name(index)} cannot be read: {error}'
                if self.corrupt == 'fail':
                    raise UnreadableImageError(f'{message} (--corrupt-images skip goes on without it)') from error
                _logger.warning('%s; skipped', message)
            if not self.replace:
                return Image.new(getattr(self.dataset, 'input_img_mode', 'RGB'), (32, 32)), -1
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
        process: this process among all.
        whole: leave out a smaller last batch, and the last ones that do not fill a group of `whole` batches.
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
        """Images of a batch of the present epoch."""
        return [index for _, _, index in self._draws()[batch * self.batch_size:(batch + 1) * self.batch_size]]

    def _draws(self) -> list[Draw]:
        if hasattr(self.order, 'set_epoch'):
            self.order.set_epoch(self.epoch)
        rank, world_size = self.process.rank, self.process.world_size
        return [(self.epoch, rank + world_size * i, int(index)) for i, index in enumerate(self.order)]
