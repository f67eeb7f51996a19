"""Files that are whole or not there, and the state of a run in them."""

import io
import logging
import os
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

__all__ = ['CheckpointError', 'is_whole', 'newest_whole', 'read_checkpoint', 'save_checkpoint', 'write_atomically']

_logger = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = 'last.pth.tar', 'previous.pth.tar', 'model_best.pth.tar'  # timm's names and a second


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read."""


def write_atomically(path: Path, content: bytes) -> None:
    """Make `content` appear under `path` only when all of it is on the disk.

    Raises:
        CheckpointError: it cannot be written (a full disk, …); what was there before is as it was.
    """
    part = path.with_name(f'{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f'{path} ({len(content):,} bytes) cannot be written: {error}; files from before are intact') from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the folder's names on the disk too, where folders can be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(path: str | Path) -> bool:
    """Whether all of a checkpoint that torch.save wrote is there: its table of contents and every checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def save_checkpoint(folder: Path, state: dict[str, Any], best: bool = False) -> None:
    """Write the newest state of a run; the one before is kept beside it.

    Args:
        folder: of the run.
        state: what :func:`read_checkpoint` gives back, timm's keys among it.
        best: keep it as the best one too.

    Raises:
        CheckpointError: the disk is full, …; the checkpoints from before are as they were.
    """
    buffer = io.BytesIO()  # a file of torch's own that meets a full disk ends in a RuntimeError that says nothing
    torch.save(state, buffer)
    content = buffer.getvalue()
    last, new = folder / LAST, folder / f'new-{LAST}'
    write_atomically(new, content)
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(new, last)  # between these two lines there is no last one, and newest_whole takes the new one
    _sync_folder(folder)
    if best:
        write_atomically(folder / BEST, content)


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
