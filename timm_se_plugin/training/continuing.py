"""What a run continues from, and with which options: another number of processes, or more epochs, continue it too."""

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

from .checkpoint import newest_whole, read_checkpoint
from .config import BEFORE, different_options, options_of
from .data import STREAMS
from .process import Process

__all__ = ['checkpoint_of', 'continued']

_logger = logging.getLogger(__name__)


def checkpoint_of(options: Namespace, folder: Path) -> tuple[Any, dict[str, Any] | None]:
    """The checkpoint that a run continues from, and its content; None for a run that begins.

    Raises:
        ValueError: the folder holds a run, and ``--resume`` is not given.
        CheckpointError: the checkpoint cannot be read.
    """
    found = newest_whole(folder)
    if not options.resume and found:
        raise ValueError(
            f'{folder} holds a run already; --resume auto continues it, and --experiment names another folder')
    path = found if options.resume == 'auto' else options.resume
    return path, read_checkpoint(path) if path else None


def continued(options: Namespace, state: dict[str, Any], process: Process, path: Any) -> Namespace:
    """`options` with the batch size and the accumulation that keep the images of an update, for these processes.

    Raises:
        ValueError: the checkpoint is of another run, or its images of an update cannot be shared by these processes.
    """
    if 'position' not in state:
        raise ValueError(f'{path} is a checkpoint of another trainer: it does not hold the epoch and batch of its run')
    then, before, now = options_of(state), state['position']['world_size'], process.world_size
    whole = state['position'].get('global_batch', then['batch_size'] * then['grad_accum_steps'] * before)
    batch = ('batch_size', 'grad_accum_steps')
    kept = options.batch_size * options.grad_accum_steps * now == whole
    same = all(then[key] == getattr(options, key) for key in batch)
    is_stream = options.dataset.partition('/')[0].lower() in STREAMS
    ignored = () if now == before and not (kept or same) else batch
    kept_ways = {key: value for key, value in BEFORE.items() if not hasattr(state['args'], key)}
    options = Namespace(**{**vars(options), **kept_ways})
    different = [text for text in different_options(then, vars(options))
                 if text.partition('=')[0] not in (*ignored, 'epochs')]
    if is_stream and now != before:
        different.append(f'{now} processes (was {before}), which a stream cannot change')
    if different:
        raise ValueError(f'{path} is of another run; other values here: {", ".join(different)}')
    if options.epochs != then['epochs']:
        if options.epochs < state['position']['epoch']:
            raise ValueError(f'{path} has trained {state["position"]["epoch"]} epochs, more than --epochs '
                             f'{options.epochs}')
        _logger.warning('the run is continued to %d epochs instead of %d: from here on, the learning rate follows the '
                        'schedule of the new length', options.epochs, then['epochs'])
    if kept:
        return options
    if whole % now:
        raise ValueError(f'{path} has {whole} images in an update, which {now} processes cannot share equally; '
                         f'continue the run with a number of processes that divides {whole}')
    share = whole // now
    steps = next(steps for steps in range(-(-share // options.batch_size), share + 1) if share % steps == 0)
    _logger.warning(
        '%d processes continue the run: batches of %d images and %d accumulation steps keep the %d images of an '
        "update. BatchNorm's statistics, Mixup's partners, dropout and drop path depend on the batch of a process",
        now, share // steps, steps, whole)
    return Namespace(**{**vars(options), 'batch_size': share // steps, 'grad_accum_steps': steps})
