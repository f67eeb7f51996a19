"""Data sets that are broken, or whose meaning has shifted: a new kind is a line in a table.

``PICTURES`` holds functions of a picture file, of a COCO folder or of class folders alike, and ``ANNOTATIONS``
functions of the content of a COCO JSON file; each changes what it is given.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _saved_anew(path: Path, change: Callable[[Any], Any], **options: Any) -> None:
    from PIL import Image
    with Image.open(path) as picture:
        picture.load()
    change(picture).save(path, **options)


def _with_orientation(path: Path, orientation: int) -> None:
    """Give a picture an EXIF orientation, and leave its pixels as they are."""
    from PIL import Image
    exif = Image.Exif()
    exif[0x0112] = orientation
    _saved_anew(path, lambda picture: picture, exif=exif)


PICTURES: dict[str, Callable[[Path], object]] = {
    'empty': lambda path: path.write_bytes(b''),
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:path.stat().st_size // 2]),
    'without its last bytes': lambda path: path.write_bytes(path.read_bytes()[:-40]),
    'header alone': lambda path: path.write_bytes(path.read_bytes()[:60]),
    'text': lambda path: path.write_text('<html>404 Not Found</html>'),
    'gone': lambda path: path.unlink(),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
    'narrow': lambda path: _saved_anew(path, lambda picture: picture.resize((20000, 20))),
    'half as large': lambda path: _saved_anew(path, lambda picture: picture.reduce(2)),
    'turned by its pixels': lambda path: _saved_anew(path, lambda picture: picture.transpose(2)),
    'turned by its tag': lambda path: _with_orientation(path, 6),
    'upside down by its tag': lambda path: _with_orientation(path, 3),
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
    'no area and no iscrowd': lambda data: (
        _without(data, 'annotations', 'area'), _without(data, 'annotations', 'iscrowd')),
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
