"""Checkpoints of a run: each is written whole or not at all, and the one before it is kept."""

import io
import logging
import os
from argparse import Namespace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ..files.hub_files import BEST, LAST
from ..files.writing import is_whole, sync_folder, write_atomically
from ..weights.reading import reason_of

__all__ = ['BEST', 'LAST', 'CheckpointError', 'newest_whole', 'read_checkpoint', 'runs_in', 'save_checkpoint']

_logger = logging.getLogger(__name__)

PREVIOUS = 'previous.pth.tar'


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read."""


def save_checkpoint(folder: Path, state: dict[str, Any], best: bool = False) -> None:
    """Write the newest state of a run as ``last.pth.tar``; the former file becomes ``previous.pth.tar``.

    Args:
        folder: the run's folder.
        state: what :func:`read_checkpoint` returns, with timm's keys.
        best: whether to write the state as ``model_best.pth.tar`` too.

    Raises:
        UnwritableFileError: the disk is full or the like; the earlier checkpoints are unchanged.
    """
    buffer = io.BytesIO()  # torch.save to a file on a full disk raises a RuntimeError that does not say why
    torch.save(state, buffer)
    content = buffer.getvalue()
    # BEST is written first: LAST holds the best score, and a run resumed from there would not write BEST again.
    if best:
        write_atomically(folder / BEST, content)
    last, new = folder / LAST, folder / f'new-{LAST}'
    write_atomically(new, content)
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(new, last)  # a run killed between these two renames leaves `new` alone, which newest_whole finds
    sync_folder(folder)


def newest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint in the folder of a run, or the best one where no other is left; else None."""
    for name in (f'new-{LAST}', LAST, PREVIOUS, BEST):
        path = folder / name
        if path.exists():
            if is_whole(path):
                return path
            _logger.warning('%s is not a whole checkpoint; an older one is used if there is one', path)
    return None


def runs_in(folder: Path) -> list[Path]:
    """The first five folders of runs, by name, in a folder and in the folders in it; for messages."""
    return sorted({path.parent for depth in ('*', '*/*') for path in folder.glob(f'{depth}/{LAST}')})[:5]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as plain data: code in the file is not run.

    Raises:
        CheckpointError: there is no such file, a part of it is missing or changed, or it is another kind of file.
    """
    if Path(path).is_dir():
        raise CheckpointError(f'{path} is a folder; name a checkpoint in it, such as {Path(path, LAST)}')
    if not Path(path).is_file():
        raise CheckpointError(f'there is no checkpoint {path}')
    if not is_whole(path):
        raise CheckpointError(f'{path} is not a whole checkpoint: it is truncated, corrupt or another kind of file')
    with torch.serialization.safe_globals([Namespace]):
        try:
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
        except UnpicklingError as error:
            raise CheckpointError(f'{path} is not a checkpoint of a training run, which has plain data alone: '
                                  f'{reason_of(error)}') from error
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise CheckpointError(f'{path} is not a checkpoint of a training run: it has no state_dict')
    return checkpoint
