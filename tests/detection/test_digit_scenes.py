import importlib.util
import json

import pytest

if importlib.util.find_spec('mmdet') is None or importlib.util.find_spec('sklearn') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra, and [train]', allow_module_level=True)

import cv2
import numpy as np

from timm_se_plugin.detection.digit_scenes import write_digit_scenes

pytestmark = pytest.mark.mmdet


def test_boxes_are_tight_apart_and_of_every_class(tmp_path):
    write_digit_scenes(tmp_path, train=40, val=3)
    data = json.loads((tmp_path / 'instances_train.json').read_text())
    assert len(data['images']) == 40
    assert {a['category_id'] for a in data['annotations']} == set(range(1, 11))
    assert len({a['id'] for a in data['annotations']}) == len(data['annotations'])
    assert len(list((tmp_path / 'images').iterdir())) == 43
    for image in data['images']:
        picture = cv2.imread(str(tmp_path / 'images' / image['file_name'])).astype(float)
        taken = np.zeros(picture.shape[:2], dtype=int)
        boxes = [a['bbox'] for a in data['annotations'] if a['image_id'] == image['id']]
        assert boxes
        for x, y, width, height in boxes:
            taken[y:y + height, x:x + width] += 1
        assert taken.max() == 1
        assert picture[taken == 1].mean() > picture[taken == 0].mean() + 30


def test_scenes_are_the_same_again_with_the_same_seed(tmp_path):
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        write_digit_scenes(tmp_path / name, train=2, val=1, seed=seed)
    a, b, c = ((tmp_path / name / 'images' / 'train_0001.png').read_bytes() for name in 'abc')
    assert a == b != c
