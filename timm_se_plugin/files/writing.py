"""Writing files whole or not at all, and checking that a checkpoint is whole."""

import os
import zipfile
from pathlib import Path

__all__ = ['UnwritableFileError', 'is_whole', 'write_atomically']


class UnwritableFileError(OSError):
    """A file cannot be written; the file that was there before is unchanged."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, where it appears only when all of it is on the disk; its folder is made if needed.

    Raises:
        UnwritableFileError: the disk is full, the folder is not writable, or the like.
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
            f'{path} ({len(content):,} bytes) cannot be written: {error}; earlier files are unchanged') from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk too, on systems that can open folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint of ``torch.save`` has its table of contents and all its bytes, by their checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
