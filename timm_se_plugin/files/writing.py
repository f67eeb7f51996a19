"""Files that are whole or not there."""

import os
import zipfile
from pathlib import Path

__all__ = ['UnwritableFileError', 'is_whole', 'write_atomically']


class UnwritableFileError(OSError):
    """A file cannot be written; what was there before is as it was."""


def write_atomically(path: Path, content: bytes) -> None:
    """Make `content` appear under `path` only when all of it is on the disk; its folder is made if it isn't there.

    Raises:
        UnwritableFileError: it cannot be written (a full disk, …).
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
        raise UnwritableFileError(
            f'{path} ({len(content):,} bytes) cannot be written: {error}; files from before are intact') from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
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
