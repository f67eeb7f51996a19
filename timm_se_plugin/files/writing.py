"""Files that are complete or absent."""

import contextlib
import os
import tempfile
import zipfile
from pathlib import Path

__all__ = ['UnwritableFileError', 'check_file', 'check_folder', 'is_whole', 'sync_folder', 'write_atomically']


class UnwritableFileError(OSError):
    """A file cannot be written. What the file held before has not changed."""


def check_folder(path: str | Path) -> None:
    """Refuse a folder into which no results can be written, before the work that the results come from.

    A folder that does not exist is not made, so that nothing is left behind if the work fails.

    Raises:
        UnwritableFileError: there is a file of that name, the folder cannot be made, or it is read-only.
    """
    whole = Path(path).absolute()
    existing = next(folder for folder in (whole, *whole.parents) if os.path.lexists(folder))
    try:  # not os.access, which calls everything writable for root, and for Windows
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UnwritableFileError(f'{path} cannot be a folder of results: {error}; give another name') from error


def check_file(path: str | Path, kind: str = 'file') -> None:
    """Refuse a file that cannot be written, before the work that its content comes from.

    Args:
        path: the file, which need not exist.
        kind: what the message asks for in the place of a folder.

    Raises:
        ValueError: `path` is a folder.
        UnwritableFileError: the folder of the file cannot be made, or is read-only.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder; give the name of a {kind}')
    check_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when all of its content is on the disk.

    Args:
        path: the file; its folder is created if it does not exist.
        content: the bytes to write.

    Raises:
        UnwritableFileError: the file cannot be written, for example because the disk is full.
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
        with contextlib.suppress(OSError):  # there is none where its folder or its name is what cannot be
            part.unlink()
        raise UnwritableFileError(
            f'{path} ({len(content):,} bytes) cannot be written: {error}; earlier files are unchanged') from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the list of a folder's files to the disk, on systems where a folder can be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(path: str | Path) -> bool:
    """Whether a file of ``torch.save`` is complete: its table of contents and every checksum are right."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # a changed byte makes zipfile raise exceptions of many classes
        return False
