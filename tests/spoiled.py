"""Data sets that are broken, or whose meaning has shifted: a new kind is a line in a table.

``PICTURES`` holds functions of a picture file, of a COCO folder or of class folders alike, ``FOLDERS`` functions of the
class folders of a split, and ``ANNOTATIONS`` functions of the content of a COCO JSON file; each changes what it is
given.
"""

import json
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


def saved_anew(
        path: Path, change: Callable[[Any], Any] = lambda picture: picture, ending: str = '', **options: Any,
) -> None:
    """Change a picture, and save it under another ending if one is given."""
    from PIL import Image
    with Image.open(path) as picture:
        picture.load()
    path.unlink()
    picture = change(picture)
    picture.save(path.with_suffix(ending or path.suffix), **{'exif': picture.getexif(), **options})


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


def _with_orientation(path: Path, orientation: int) -> None:
    """Give a picture an EXIF orientation, and leave its pixels as they are."""
    from PIL import Image
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved_anew(path, lambda picture: picture, exif=exif)


PICTURES: dict[str, Callable[[Path], object]] = {
    'empty': lambda path: path.write_bytes(b''),
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    'without its last bytes': lambda path: path.write_bytes(path.read_bytes()[:-40]),
    'header alone': lambda path: path.write_bytes(path.read_bytes()[:60]),
    'text': lambda path: path.write_text('<html>404 Not Found</html>'),
    'gone': lambda path: path.unlink(),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
    'narrow': lambda path: saved_anew(path, lambda picture: picture.resize((20000, 20))),
    'half as large': lambda path: saved_anew(path, lambda picture: picture.reduce(2)),
    'turned by its pixels': lambda path: saved_anew(path, lambda picture: picture.transpose(2)),
    'turned by its tag': lambda path: _with_orientation(path, 6),
    'upside down by its tag': lambda path: _with_orientation(path, 3),
    'upright by its tag': lambda path: saved_anew(path, turned),
    '16 bits': lambda path: saved_anew(path, sixteen_bits),
    'fractions': lambda path: saved_anew(path, lambda picture: picture.convert('F').point(lambda x: x / 255), '.tif'),
}


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
    'two links that lead to one another': lambda folder: (
        (folder / 'red' / 'blue').symlink_to('../blue'), (folder / 'blue' / 'red').symlink_to('../red')),
    'a link to nowhere': lambda folder: (folder / 'pink').symlink_to(folder / 'nowhere'),
    'a link to another class': lambda folder: (folder / 'pink').symlink_to(folder / 'red'),
    'a folder in a class': lambda folder: _as_class(folder, 'red/more'),
    'other files': lambda folder: [(folder / 'red' / name).write_text('x') for name in ('a.txt', 'b.csv', 'c.txt')],
}


def _rename(data: dict, old: str, new: str) -> None:
    for category in data['categories']:
        if category['name'] == old:
            category['name'] = new


def _renumber(data: dict, ids: dict[int, int]) -> None:
    for category in data['categories']:
        category['id'] = ids[category['id']]
    for annotation in data['annotations']:
        annotation['category_id'] = ids[annotation['category_id']]


def _without(data: dict, part: str, key: str) -> None:
    for entry in data[part]:
        del entry[key]


ANNOTATIONS: dict[str, Callable[[dict], object]] = {
    'categories reversed': lambda data: data['categories'].reverse(),
    'ids reversed': lambda data: _renumber(data, {
        c['id']: other['id'] for c, other in zip(data['categories'], data['categories'][::-1], strict=True)}),
    'ids with gaps': lambda data: _renumber(data, {c['id']: 90 - 7 * c['id'] for c in data['categories']}),
    'name misspelt': lambda data: _rename(data, 'red', 'rad'),
    'name in capitals': lambda data: _rename(data, 'red', 'Red'),
    'name with a blank': lambda data: _rename(data, 'red', 'red '),
    'all names other': lambda data: [c.update(name=f'kind {c["id"]}') for c in data['categories']],
    'one category less': lambda data: data['categories'].pop(),
    'one category more, with a box': lambda data: (
        data['categories'].insert(0, dict(id=9, name='green')), data['annotations'][0].update(category_id=9)),
    'a parent category of the same name': lambda data: data['categories'].insert(0, dict(id=0, name='red')),
    'two categories of one name': lambda data: (
        data['categories'].append(dict(id=9, name='red')), data['annotations'][1].update(category_id=9)),
    'two categories of one id': lambda data: data['categories'].append(dict(id=2, name='green')),
    'a box of no category': lambda data: data['annotations'][0].update(category_id=11),
    'ids as text': lambda data: [a.update(category_id=str(a['category_id'])) for a in data['annotations']],
    'two images of one id': lambda data: data['images'][1].update(id=0),
    'two boxes of one id': lambda data: data['annotations'][1].update(id=1),
    'a box of no image': lambda data: data['annotations'].append(
        dict(data['annotations'][0], id=99, image_id=99)),
    'a box of no width': lambda data: data['annotations'][0].update(bbox=[5, 5, 0, 9]),
    'a box outside': lambda data: data['annotations'][0].update(bbox=[500, 500, 9, 9]),
    'a box without a number': lambda data: data['annotations'][0].update(bbox=[5, float('nan'), 20, 20]),
    'a box without an end': lambda data: data['annotations'][0].update(bbox=[5, 5, float('inf'), 20]),
    'a box of five numbers': lambda data: data['annotations'][0].update(bbox=[5, 5, 20, 20, 1]),
    'a box of no numbers': lambda data: data['annotations'][0].update(bbox=[]),
    'a box of text': lambda data: data['annotations'][0].update(bbox=['5', '5', '20', '20']),
    'a box that is null': lambda data: data['annotations'][0].update(bbox=None),
    'marks as text': lambda data: [a.update(iscrowd='0') for a in data['annotations']],
    'ignore as text': lambda data: [a.update(ignore='false') for a in data['annotations']],
    'image ids as text': lambda data: [a.update(image_id=str(a['image_id'])) for a in data['annotations']],
    'no pictures': lambda data: data.update(images=[], annotations=[]),
    'no annotations': lambda data: data.update(annotations=[]),
    'crowds alone': lambda data: [a.update(iscrowd=1) for a in data['annotations']],
    'fractions of the picture': lambda data: [a.update(bbox=[v / 96 for v in a['bbox']]) for a in data['annotations']],
    'a box given twice': lambda data: data['annotations'].append(dict(data['annotations'][0], id=99)),
    'a picture given twice': lambda data: data['images'].append(dict(data['images'][0], id=99)),
    'corners for width and height': lambda data: [a.update(bbox=[
        *a['bbox'][:2], a['bbox'][0] + a['bbox'][2], a['bbox'][1] + a['bbox'][3]]) for a in data['annotations']],
    'sizes swapped': lambda data: [
        image.update(width=image['height'], height=image['width']) for image in data['images']],
    'sizes of the originals': lambda data: [
        image.update(width=4 * image['width'], height=4 * image['height']) for image in data['images']],
    'no sizes': lambda data: _without(data, 'images', 'width'),
    'a size of zero': lambda data: data['images'][0].update(width=0),
    'a size as text': lambda data: data['images'][0].update(width='96'),
    'no area and no iscrowd': lambda data: (
        _without(data, 'annotations', 'area'), _without(data, 'annotations', 'iscrowd')),
    'areas of zero': lambda data: [a.update(area=0) for a in data['annotations']],
    'areas below zero': lambda data: [a.update(area=-1.) for a in data['annotations']],
    'areas as text': lambda data: [a.update(area=str(a['area'])) for a in data['annotations']],
    'areas without an end': lambda data: [a.update(area=float('inf')) for a in data['annotations']],
    'image ids of two types': lambda data: (
        data['images'][0].update(id='0'), [a.update(image_id='0') for a in data['annotations'] if not a['image_id']]),
    'category ids of two types': lambda data: (
        data['categories'][0].update(id='1'),
        [a.update(category_id='1') for a in data['annotations'] if a['category_id'] == 1]),
    'area and iscrowd null': lambda data: [a.update(area=None, iscrowd=None) for a in data['annotations']],
    'no categories': lambda data: data.pop('categories'),
    'no boxes': lambda data: _without(data, 'annotations', 'bbox'),
    'a list': lambda data: data.clear(),
}


def change_annotations(file: Path, kind: str | Callable[[dict], object]) -> Path:
    """Change a COCO JSON file in place, by the name of a kind or by a function of its content."""
    data = json.loads(file.read_text(encoding='utf-8'))
    (ANNOTATIONS[kind] if isinstance(kind, str) else kind)(data)
    file.write_text(json.dumps(data, ensure_ascii=False), encoding='utf-8')
    return file


def spoil(folder: Path, kind: str) -> Path:
    """Change the folder of a split in place, by the name of a kind."""
    FOLDERS[kind](folder)
    return folder
