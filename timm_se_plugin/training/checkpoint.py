"""The state of a run in files that are whole or not there."""

import io
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from ..files.writing import is_whole, sync_folder, write_atomically

__all__ = ['BEST', 'LAST', 'CheckpointError', 'newest_whole', 'read_checkpoint', 'save_checkpoint']

_logger = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = 'last.pth.tar', 'previous.pth.tar', 'model_best.pth.tar'  # timm's names and a second


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read."""


def save_checkpoint(folder: Path, state: dict[str, Any], best: bool = False) -> None:
    """Write the newest state of a run; the one before is kept beside it.

    Args:
        folder: of the run.
        state: what :func:`read_checkpoint` gives back, timm's keys among it.
        best: keep it as the best one too.

    Raises:
        UnwritableFileError: the disk is full, …; the checkpoints from before are as they were.
    """
    buffer = io.BytesIO()  # a file of torch's own that meets a full disk ends in a RuntimeError that says nothing
    torch.save(state, buffer)
    content = buffer.getvalue()
    if best:  # first: a state that says that it was the best is not written again
        write_atomically(folder / BEST, content)
    last, new = folder / LAST, folder / f'new-{LAST}'
    write_atomically(new, content)
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(new, last)  # between these two lines there is no last one, and newest_whole takes the new one
    sync_folder(folder)


def newest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; None if there is none."""
    for name in (f'new-{LAST}', LAST, PREVIOUS):
        path = folder / name
        if path.exists():
            if is_whole(path):
                return path
            _logger.warning('%s is not a whole checkpoint and is passed over', path)
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, without running code that may be in it.

    Raises:
        CheckpointError: it is not there, not whole, or none.
    """
    if not Path(path).is_file():
        raise CheckpointError(f'there is no checkpoint {path}')
    if not is_whole(path):
        raise CheckpointError(f'{path} is not a whole checkpoint: truncated, corrupt or of another kind')
    with torch.serialization.safe_globals([Namespace]):
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise CheckpointError(f'{path} is no checkpoint of a training run: it has no state_dict')
    return checkpoint
