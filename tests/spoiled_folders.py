"""Class folders that are broken, or whose meaning has shifted: a kind is an entry in a table.

``FOLDERS`` holds functions of the folder of a split, ``PICTURES`` functions of a picture file; each changes what it is
given.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

COLOURS = {'red': (220, 40, 40), 'green': (40, 220, 40), 'blue': (40, 40, 220)}


def save_colours(folder: Path, train: int = 16, val: int = 16, size: int = 32) -> Path:
    """Write noisy pictures of three colours: ``train/<colour>/*.png`` and ``validation/<colour>/*.png``."""
    import numpy as np
    from PIL import Image
    generator = np.random.default_rng(0)
    for split, count in (('train', train), ('validation', val)):
        for name, colour in COLOURS.items():
            path = folder / split / name
            path.mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(-30, 31, (size, size, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype('uint8')).save(path / f'{i:02d}.png')
    return folder


def saved_anew(path: Path, change: Callable[[Any], Any] = lambda picture: picture, ending: str = '') -> None:
    """Change a picture, and save it under another ending if one is given."""
    from PIL import Image
    with Image.open(path) as picture:
        picture.load()
    path.unlink()
    picture = change(picture)
    picture.save(path.with_suffix(ending or path.suffix), exif=picture.getexif())


def turned(picture: Any) -> Any:
    """The pixels of a picture lying on their side, with an EXIF orientation that sets them upright again."""
    picture = picture.transpose(2)
    picture.getexif()[0x0112] = 6
    return picture


def sixteen_bits(picture: Any, low: int = 0) -> Any:
    """A grey picture of 16 bits; `low` is the lower byte of each pixel."""
    import numpy as np
    from PIL import Image
    return Image.fromarray(np.asarray(picture.convert('L')).astype('uint16') * 256 + low)


def _other_format(folder: Path, ending: str, name: str = '*', every: int = 2) -> None:
    for path in sorted(folder.glob(f'{name}/*.png'))[::every]:
        saved_anew(path, ending=ending)


def _as_class(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    (folder / name / '00.png').write_bytes((folder / 'red' / '00.png').read_bytes())


def _remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _flatten(folder: Path) -> None:
    for path in folder.glob('*/*.png'):
        path.rename(folder / f'{path.parent.name}-{path.name}')
    for path in folder.iterdir():
        if path.is_dir():
            path.rmdir()


FOLDERS: dict[str, Callable[[Path], object]] = {
    'a class less': lambda folder: _remove(folder / 'blue'),
    'a class more': lambda folder: _as_class(folder, 'yellow'),
    'a class renamed': lambda folder: (folder / 'blue').rename(folder / 'amber'),
    'a class misspelt': lambda folder: (folder / 'green').rename(folder / 'gren'),
    'a class with an accent': lambda folder: (folder / 'green').rename(folder / 'gr\u00fcn'),
    'a class with an accent of its own': lambda folder: (folder / 'green').rename(folder / 'gru\u0308n'),
    'a class emptied': lambda folder: [path.unlink() for path in (folder / 'green').iterdir()],
    'flat': _flatten,
    'a stray picture': lambda folder: (folder / 'stray.png').write_bytes((folder / 'red' / '00.png').read_bytes()),
    'half as webp': lambda folder: _other_format(folder, '.webp'),
    'half as tif': lambda folder: _other_format(folder, '.tif'),
    'half as bmp': lambda folder: _other_format(folder, '.bmp'),
    'half as jp2': lambda folder: _other_format(folder, '.JP2'),
    'a class as webp': lambda folder: _other_format(folder, '.webp', 'green', 1),
    'checkpoints of a notebook': lambda folder: _as_class(folder, '.ipynb_checkpoints'),
    'an archive of macOS': lambda folder: _as_class(folder, '__MACOSX'),
    'resource forks': lambda folder: (folder / 'red' / '._00.png').write_bytes(b'Mac OS X'),
    'a class in two cases': lambda folder: _as_class(folder, 'Red'),
    'a class with a blank': lambda folder: _as_class(folder, 'red '),
    'a folder of a year in each class': lambda folder: [_as_class(folder, f'{name}/2020') for name in COLOURS],
    'a link to the folder above': lambda folder: (folder / 'red' / 'loop').symlink_to(folder),
    'a link to nowhere': lambda folder: (folder / 'pink').symlink_to(folder / 'nowhere'),
    'a link to another class': lambda folder: (folder / 'pink').symlink_to(folder / 'red'),
    'a folder in a class': lambda folder: _as_class(folder, 'red/more'),
    'other files': lambda folder: [(folder / 'red' / name).write_text('x') for name in ('a.txt', 'b.csv', 'c.txt')],
}


PICTURES: dict[str, Callable[[Path], object]] = {
    'turned': lambda path: saved_anew(path, turned),
    '16 bits': lambda path: saved_anew(path, sixteen_bits),
    'fractions': lambda path: saved_anew(path, lambda picture: picture.convert('F').point(lambda x: x / 255), '.tif'),
    'narrow': lambda path: saved_anew(path, lambda picture: picture.resize((20000, 20))),
}


def spoil(folder: Path, kind: str) -> Path:
    """Change the folder of a split in place, by the name of a kind."""
    FOLDERS[kind](folder)
    return folder
