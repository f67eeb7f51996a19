"""Compares the picture files of data sets with the annotations, by the files' headers."""

import io
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from mmengine.fileio import get_file_backend
from mmengine.fileio.backends import LocalBackend
from mmengine.logging import print_log
from PIL import Image
from tqdm import tqdm

from ..files.counting import counted
from ..files.pictures import orientation_in_header

__all__ = ['PictureFile', 'check_pictures', 'is_local', 'load_picture', 'loader_of', 'picture_files']

_END_MARKS = {'JPEG': b'\xff\xd9', 'MPO': b'\xff\xd9', 'PNG': b'IEND'}
_FETCHED = 100  # the most pictures that are fetched whole for the check, where files are not local


class PictureFile(NamedTuple):
    """The file of a picture of a data set.

    Args:
        path: the file, as the data set names it.
        image: the id of the image in the annotations.
        size: width and height in pixels as the annotations say; None if they do not.
        where: the file of the annotations.
        loader: the pipeline's step that reads the file, such as MMCV's ``LoadImageFromFile``; None if the pipeline has
            no step of that kind.
    """

    path: str
    image: Any
    size: tuple[int, int] | None
    where: str
    loader: Any


def is_local(path: str, backend_args: dict[str, Any] | None) -> bool:
    """Whether MMEngine's own backend for local files reads a path."""
    return type(get_file_backend(path, backend_args=backend_args)) is LocalBackend


def loader_of(dataset: Any) -> Any:
    """The step of a data set's pipeline that decodes picture files; None if there is none."""
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    return next((step for step in steps if hasattr(step, 'imdecode_backend')), None)


def picture_files(dataset: Any) -> Iterator[PictureFile]:
    """Those of the pictures of a data set that have a file of their own."""
    loader, where = loader_of(dataset), str(getattr(dataset, 'ann_file', ''))
    for i in range(len(dataset) if hasattr(dataset, 'get_data_info') else 0):
        info = dataset.get_data_info(i)
        size = (info['width'], info['height']) if 'width' in info and 'height' in info else None
        if isinstance(info.get('img_path'), str):
            yield PictureFile(info['img_path'], info.get('img_id'), size, where, loader)


def load_picture(picture: PictureFile) -> np.ndarray:
    """A picture as the pipeline's loader returns it, (H, W, 3).

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        return picture.loader.transform({'img_path': picture.path})['img']
    except Exception as error:
        raise ValueError(f'{picture.path} cannot be read by {type(picture.loader).__name__}: '
                         f'{type(error).__name__}: {error}') from error


def check_pictures(pictures: list[PictureFile]) -> None:
    """Check that pictures exist, are whole, and are loaded in the size that the annotations say.

    Of files that are not local, at most 100 are checked, since each is fetched whole. On a terminal, a bar shows the
    progress.

    Raises:
        FileNotFoundError: pictures do not exist.
        ValueError: pictures are broken or have another size; the message names the first file and what to do.
    """
    far = [picture for picture in pictures if not _is_local(picture)]
    looked = [picture for picture in pictures if _is_local(picture)] + far[::-(-len(far) // _FETCHED) or 1]
    with warnings.catch_warnings(), ThreadPoolExecutor(16) as threads:
        warnings.simplefilter('ignore')  # Pillow's, about large pictures and odd tags
        headers = list(tqdm(threads.map(_header, looked), total=len(looked), unit='', delay=1, disable=None,
                            desc='checking the picture files'))
    missing: list[tuple[PictureFile, str]] = []
    broken: list[tuple[PictureFile, str]] = []
    resized: list[tuple[PictureFile, str]] = []
    unclear = []
    turns: dict[tuple, bool] = {}
    for picture, header in zip(looked, headers, strict=True):
        if isinstance(header, Exception):
            (missing if isinstance(header, FileNotFoundError) else broken).append((picture, str(header)))
            continue
        if picture.size and header.swaps and header.size[0] != header.size[1]:
            size = header.size[::-1] if _is_turned(picture, header, turns) else header.size
        else:
            size = header.size
            if header.orientation in range(2, 9):
                unclear.append(picture.path)
        if picture.size and picture.size != size:
            resized.append((picture, _other_size(picture, header, size)))
    for error, found, what in (
            (FileNotFoundError, missing, 'do not exist'),
            (ValueError, broken, 'are broken; replace the files, or remove the pictures from the annotations'),
            (ValueError, resized, 'are not of the annotated size, so that their boxes would lie elsewhere')):
        if found:
            where = found[0][0].where
            raise error(f'{sum(picture.where == where for picture, _ in found)} of the '
                        f'{sum(picture.where == where for picture in looked)} pictures of {where} {what}; the first '
                        f'is {found[0][1]}')
    if unclear:
        print_log(f'{counted(len(unclear), "picture has", "pictures have")} an EXIF orientation that turns or mirrors '
                  f'without a change of size, the first of them {unclear[0]}; make sure that the boxes are for the '
                  'pictures as they are loaded', logger='current', level=logging.WARNING)
    if len(looked) < len(pictures):
        print_log(f'checked {len(looked)} of {len(pictures)} picture files, since the others are not local',
                  logger='current')


class _Header(NamedTuple):
    size: tuple[int, int]  # width, height
    orientation: int = 1
    format: str | None = None

    @property
    def swaps(self) -> bool:
        """Whether the orientation swaps width and height."""
        return self.orientation in range(5, 9)


def _is_turned(picture: PictureFile, header: _Header, turns: dict[tuple, bool]) -> bool:
    """Whether the loader turns pictures of this format and orientation; `turns` keeps what is known."""
    kind = (header.format, header.orientation, repr(picture.loader))
    if kind not in turns:
        turns[kind] = load_picture(picture).shape[1::-1] != header.size
    return turns[kind]


def _other_size(picture: PictureFile, header: _Header, size: tuple[int, int]) -> str:
    """What a picture's size is as it is loaded and in the annotations, and what to do."""
    assert picture.size is not None
    text = f'{picture.path}: {size[0]}x{size[1]} (width x height) as it is loaded, and ' \
           f'{picture.size[0]}x{picture.size[1]} in the annotations. '
    if header.swaps and picture.size == size[::-1]:
        color_type = 'color' if size == header.size else 'color_ignore_orientation'
        return text + (f'Its EXIF orientation is {header.orientation}, and LoadImageFromFile(color_type='
                       f'{color_type!r}) in every pipeline loads the picture as it was annotated; or save the files '
                       'without the tag')
    return text + ('Use the pictures that were annotated, or scale the widths, heights, boxes and segmentations of the '
                   'annotations to these pictures')


def _is_local(picture: PictureFile) -> bool:
    return not getattr(picture.loader, 'file_client_args', None) and is_local(
        picture.path, getattr(picture.loader, 'backend_args', None))


def _header(picture: PictureFile) -> _Header | Exception:
    """The header of a picture's file, or an error whose message names the file."""
    try:
        if not _is_local(picture):
            return _Header(load_picture(picture).shape[1::-1])
        if not Path(picture.path).exists():
            return FileNotFoundError(picture.path)
        if Path(picture.path).is_file() and not Path(picture.path).stat().st_size:
            return ValueError(f'{picture.path}, which is empty (0 bytes)')
        if picture.loader is None:
            return _Header(picture.size or (0, 0))
        with open(picture.path, 'rb') as file:
            try:
                opened = Image.open(file)
            except Exception:  # the loader may read more formats and greater sizes than Pillow
                return _Header(load_picture(picture).shape[1::-1])
            if not _is_whole(file, opened):
                return ValueError(f'{picture.path}, which is truncated')
            return _Header(opened.size, orientation_in_header(opened), opened.format)
    except Exception as error:
        return error if picture.path in str(error) else ValueError(f'{picture.path}: {error}')


def _is_whole(file: BinaryIO, picture: Image.Image) -> bool:
    """Whether a JPEG or PNG file has the end mark of its format, or Pillow decodes the whole picture.

    The loader cannot tell: of a truncated file, OpenCV 4 returns the decoded part and OpenCV 5 nothing.
    """
    mark = _END_MARKS.get(str(picture.format))
    if mark:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - 4096, 0))  # cameras append data of their own after the mark
        if mark not in file.read():
            try:
                picture.load()
            except OSError:
                return False
    return True
