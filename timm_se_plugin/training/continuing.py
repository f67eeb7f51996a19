"""The checkpoint and the options that a run continues with, even with other processes or more epochs."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any
from unicodedata import normalize

from ..weights.runs import FORMER
from .checkpoint import newest_whole, read_checkpoint
from .config import different_options, options_of
from .folders import closest
from .process import Process
from .splits import STREAMS

__all__ = ['check_data', 'checkpoint_of', 'continued']

_logger = logging.getLogger(__name__)


def checkpoint_of(options: Namespace, folder: Path) -> tuple[Any, dict[str, Any] | None]:
    """Path and content of the checkpoint that a run continues from; None and None for a new run.

    Raises:
        ValueError: the folder holds a run, and ``--resume`` is not given or names a checkpoint of another folder.
        CheckpointError: the checkpoint cannot be read.
    """
    found = newest_whole(folder)
    if not options.resume and found:
        raise ValueError(
            f'{folder} holds a run already; --resume auto continues it, and --experiment names another folder')
    path = found if options.resume == 'auto' else options.resume
    if found and path and Path(path).resolve().parent != folder.resolve():
        raise ValueError(f'{folder} holds a run already, whose checkpoints would be overwritten by a run that '
                         f'continues from {path}; --resume auto continues the run of the folder, and --experiment '
                         'names another folder')
    return path, read_checkpoint(path) if path else None


def continued(options: Namespace, state: dict[str, Any], process: Process, path: Any) -> Namespace:
    """Options of the continued run, whose batch size and accumulation steps keep the number of images in an update.

    Args:
        options: the options that the command gives.
        state: content of the checkpoint.
        process: this process.
        path: path of the checkpoint, for messages.

    Raises:
        ValueError: the checkpoint is of a run with other options, or the number of processes does not divide the number
            of images in an update, also where images are mixed in pairs.
    """
    if 'position' not in state:
        raise ValueError(f'{path} is a checkpoint of another trainer: it does not hold the epoch and batch of its run')
    trained, position, processes = options_of(state), state['position'], process.world_size
    global_batch = position.get(
        'global_batch', trained['batch_size'] * trained['grad_accum_steps'] * position['world_size'])
    batch = ('batch_size', 'grad_accum_steps')
    is_kept = options.batch_size * options.grad_accum_steps * processes == global_batch
    is_same = all(trained[key] == getattr(options, key) for key in batch)
    is_stream = options.dataset.partition('/')[0].lower() in STREAMS
    ignored = ['epochs', *(() if processes == position['world_size'] and not (is_kept or is_same) else batch)]
    if options.class_map and state.get('label_names'):  # the file may have moved; Run compares the classes themselves
        ignored.append('class_map')
    former = {key: value for key, value in FORMER.items() if not hasattr(state['args'], key)}
    options = Namespace(**{**vars(options), **former})
    different = [text for text in different_options(trained, vars(options))
                 if text.partition('=')[0] not in ignored]
    if is_stream and processes != position['world_size']:
        different.append(f'{processes} processes (was {position["world_size"]}; a stream needs the same number)')
    if is_stream and max(1, options.workers) != max(1, trained['workers']):
        different.append(f'workers={options.workers} (was {trained["workers"]}; a stream is dealt out to the workers)')
    if different:
        raise ValueError(f'{path} is of a run with other options than these: {", ".join(different)}; give the earlier '
                         'values, or begin another run with --experiment')
    if options.epochs != trained['epochs']:
        if options.epochs < position['epoch']:
            raise ValueError(f'{path} has been trained for {position["epoch"]} epochs, more than --epochs '
                             f'{options.epochs}; give --epochs {position["epoch"]} or more')
        _logger.warning('the run is continued to %d epochs instead of %d: from here on, the learning rate follows the '
                        'schedule of the new length', options.epochs, trained['epochs'])
    if is_kept:
        return options
    if global_batch % processes:
        raise ValueError(f'{path} has {global_batch} images in an update, which {processes} processes cannot share '
                         f'equally; continue the run with a number of processes that divides {global_batch}')
    share = global_batch // processes
    mixes = options.mixup or options.cutmix
    if mixes and share % 2:
        raise ValueError(f'{path} has {global_batch} images in an update, of which each of {processes} processes '
                         f'{share}, an odd number, and --mixup and --cutmix mix images in pairs; continue the run with '
                         'another number of processes')
    steps = next(steps for steps in range(-(-share // options.batch_size), share + 1)
                 if share % steps == 0 and not (mixes and share // steps % 2))
    _logger.warning(
        '%d processes continue the run: batches of %d images and %d accumulation steps keep the %d images of an '
        "update. BatchNorm's statistics, Mixup's partners, dropout and drop path depend on the batch of a process",
        processes, share // steps, steps, global_batch)
    return Namespace(**{**vars(options), 'batch_size': share // steps, 'grad_accum_steps': steps})


def check_data(
        state: dict[str, Any], label_names: list[str] | None, images: int, data_dir: str, path: Any) -> None:
    """Refuse data that a run did not begin with.

    Args:
        state: content of the checkpoint that the run continues from.
        label_names: names of the classes of the data; None where they have none.
        images: number of training images.
        data_dir: the folder of the data, for messages.
        path: path of the checkpoint, for messages.

    Raises:
        ValueError: the data have other classes or another number of images.
    """
    _check_classes(state.get('label_names'), label_names, path)
    before = state.get('images')
    if before not in (None, images):
        raise ValueError(
            f'{path} is of a run on {before} training images, and {data_dir} has {images}; continue the run on the '
            'data that it began with, or begin another run in a folder of its own, which --experiment names')


def _check_classes(before: list[str] | None, now: list[str] | None, path: Any) -> None:
    if not before or not now:
        return
    before, now = ([normalize('NFC', name) for name in names] for names in (before, now))
    if before != now:
        lacking, other = [name for name in before if name not in now], [name for name in now if name not in before]
        parts = [f'{what} {closest(names, known)}' for what, names, known in (
            ('lacks', lacking, other), ('has', other, [])) if names]
        raise ValueError(
            f'{path} is of a run with other classes: the data '
            + (', and '.join(parts) + ' instead' * bool(other) if parts else 'has the same classes in another order')
            + '; continue the run on the classes that it began with, or begin another run')
