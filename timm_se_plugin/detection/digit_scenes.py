"""Detection data without a download: scenes of scikit-learn's handwritten digits, with COCO annotations."""

import json
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ..boxes.drawing import write_picture

__all__ = ['write_digit_scenes']


def write_digit_scenes(folder: str | Path, train: int = 400, val: int = 60, size: int = 96, seed: int = 0) -> None:
    """Write ``instances_{train,val}.json`` and ``images/`` into a folder; no handwritten digit is in both sets.

    Args:
        folder: the folder, which is created if it does not exist.
        train: number of scenes to train on.
        val: number of scenes to validate on.
        size: height and width of a scene in pixels.
        seed: seed of the scenes; the split of the digits is always the same.
    """
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    generator = np.random.default_rng(seed)
    Path(folder, 'images').mkdir(parents=True, exist_ok=True)
    for name, count, pool in (('train', train, split[0]), ('val', val, split[1])):
        pictures: list[dict] = []
        annotations: list[dict] = []
        for i in range(count):
            picture, boxes = _scene(images, generator.choice(pool, generator.integers(2, 6)), size, generator)
            file_name = f'{name}_{i:04}.png'
            write_picture(Path(folder, 'images', file_name), picture)
            pictures.append({'id': i, 'file_name': file_name, 'width': size, 'height': size})
            annotations += [
                {'id': len(annotations) + n, 'image_id': i, 'category_id': int(labels[digit]) + 1, 'bbox': box,
                 'area': box[2] * box[3], 'iscrowd': 0} for n, (digit, box) in enumerate(boxes, start=1)]
        categories = [{'id': digit + 1, 'name': str(digit)} for digit in range(10)]
        Path(folder, f'instances_{name}.json').write_text(
            json.dumps({'images': pictures, 'annotations': annotations, 'categories': categories}), encoding='utf-8')


def _scene(
        images: np.ndarray, digits: np.ndarray, size: int, generator: np.random.Generator,
) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """A picture (size, size, 3), and for each digit in it its index and box (x, y, width, height).

    A digit that would cover another one at each of 20 random places is left out.
    """
    scene = generator.uniform(0, 90, 3) + generator.normal(0, 12, (size, size, 3))
    free = np.ones((size, size), dtype=bool)
    boxes = []
    for digit in digits:
        side = int(generator.integers(size // 4, size // 2))
        ink = cv2.resize(images[digit].reshape(8, 8) / 16, (side, side), interpolation=cv2.INTER_LINEAR)
        rows, columns = np.nonzero(ink > 0.25)
        ink = ink[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
        height, width = ink.shape
        for _ in range(20):
            x, y = (int(generator.integers(0, size - side)) for side in (width, height))
            if free[y:y + height, x:x + width].all():
                free[y:y + height, x:x + width] = False
                place = scene[y:y + height, x:x + width]
                place += ink[..., None] * (generator.uniform(150, 255, 3) - place)
                boxes.append((int(digit), [x, y, width, height]))
                break
    return scene.clip(0, 255).astype(np.uint8), boxes
