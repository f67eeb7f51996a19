"""What a detector finds, as values and files; and pictures in folders."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if importlib.util.find_spec('cv2') is None:
    pytest.skip('needs the [export], the [mmdet] or the [onedl] extra', allow_module_level=True)

import cv2

from timm_se_plugin.boxes import Detector, Found, detect, found_in, pictures_to_detect_in

FOUND = Found(np.float32([[1, 2, 30, 20]]), np.float32([0.51239]), np.array([1]))


def test_a_mask_is_a_polygon_and_a_class_without_a_name_a_number():
    mask = np.zeros((1, 24, 32), bool)
    mask[0, 5:11, 3:21] = True
    found, = found_in(Found(FOUND.boxes, FOUND.scores, FOUND.labels, mask), ['only one'])
    assert found == {'label': '1', 'score': 0.5124, 'bbox': [1., 2., 30., 20.],
                     'segmentation': [[3, 5, 3, 11, 21, 11, 21, 5]]}


# of pycocotools' masks under numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_the_outlines_of_a_mask_hold_its_pixels():
    masks = pytest.importorskip('pycocotools.mask', reason='COCO reads polygons by pycocotools: the [mmdet] extra')
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = np.kron(generator.random((8, 10)) > 0.6, np.ones((2, 3))) > 0
        mask[:, :6] = False
        mask[3:9, 1] = True  # one pixel wide
        whole = cv2.floodFill(np.pad(mask, 1).astype(np.uint8), None, (0, 0), 2)[1][1:-1, 1:-1] != 2  # without holes
        found, = found_in(Found(FOUND.boxes, FOUND.scores, FOUND.labels, mask[None]), 'ab')
        drawn = masks.decode(masks.merge(masks.frPyObjects(found['segmentation'], *mask.shape)))
        assert np.array_equal(drawn, whole)


def test_outlines_are_drawn(tmp_path):
    Image.new('RGB', (64, 48)).save(tmp_path / 'a.png')
    mask = np.zeros((1, 48, 64), bool)
    mask[0, 30:40, 3:21] = True
    for name, masks in (('with', mask), ('without', None)):
        detector = Detector(lambda picture, score, masks=masks: Found(*list(vars(FOUND).values())[:3], masks), 'ab')
        detect(detector, pictures_to_detect_in([tmp_path / 'a.png'], tmp_path / name), tmp_path / name)
    drawn = [np.asarray(Image.open(tmp_path / name / 'a.png')) for name in ('with', 'without')]
    assert (drawn[0] != drawn[1]).any(2).sum() >= 20


def test_nothing_found_is_a_result_too(tmp_path):
    Image.new('RGB', (32, 24)).save(tmp_path / 'a.png')
    detector = Detector(lambda picture, score: Found(*(np.zeros((0, 4))[:, :n].squeeze() for n in (4, 0, 0))), 'ab')
    results = detect(detector, pictures_to_detect_in([tmp_path], tmp_path / 'found'), tmp_path / 'found')
    assert results == [{'file': str(tmp_path / 'a.png'), 'detections': []}]
    text = (tmp_path / 'found' / 'detections.csv').read_text(encoding='utf-8')
    assert text == 'file,label,score,x1,y1,x2,y2\n'


@pytest.mark.parametrize(('highest', 'said'), [
    (0.29999, 'the highest score of a box is 0.2999, and a lower --score keeps such boxes'),
    (0.0, 'the detector gives no box with a lower score either')])
def test_where_no_picture_has_a_box_the_score_is_told_once(highest, said, tmp_path, caplog):
    for name in 'ab':
        Image.new('RGB', (32, 24)).save(tmp_path / f'{name}.png')
    empty = Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0), highest=highest)
    for results, messages in (([empty, empty], [f'no picture has a box with a score of 0.3 or more; {said}']),
                              ([FOUND, empty], [])):
        caplog.clear()
        left = [*results]
        detector = Detector(lambda picture, score, left=left: left.pop(0), 'ab')
        detect(detector, pictures_to_detect_in([tmp_path], tmp_path / 'found'), tmp_path / 'found')
        assert caplog.messages == messages


def test_two_pictures_that_would_be_written_to_one_file_are_both_named_and_one_given_twice_is_one(tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()
        Image.new('RGB', (32, 24)).save(tmp_path / name / 'same.png')
    one, other = (tmp_path / name / 'same.png' for name in 'ab')
    with pytest.raises(ValueError, match=f'{other} and {one} would be written to one file, .*found/same.png; give'):
        pictures_to_detect_in([one, other], tmp_path / 'found')
    assert pictures_to_detect_in([tmp_path / 'a', one, tmp_path / 'b' / '..' / 'a'], tmp_path / 'found') == {
        one: tmp_path / 'found' / 'same.png'}


def test_the_time_for_the_names_of_results_does_not_grow_with_the_square_of_the_pictures(monkeypatch):
    compared = []
    equal = Path.__eq__
    monkeypatch.setattr(Path, '__eq__', lambda self, other: compared.append(1) or equal(self, other))
    monkeypatch.setattr('timm_se_plugin.boxes.detecting.search', lambda paths, but: [
        (Path('in', f'{i}.png'), Path(f'{i}.png')) for i in range(200)])
    pictures_to_detect_in(['in'], 'found')
    assert len(compared) < 2000


def test_boxes_in_pictures_without_colours_are_drawn_into_png_files(tmp_path):
    for name in ('a.pgm', 'b.pbm', 'c.ppm', 'd.jp2'):  # OpenCV writes no small pictures as .jp2
        Image.new('RGB', (64, 48)).convert({'a': 'L', 'b': '1'}.get(name[0], 'RGB')).save(tmp_path / name)
    found = tmp_path / 'found'
    detect(Detector(lambda picture, score: FOUND, 'ab'), pictures_to_detect_in([tmp_path], found), found)
    assert {path.name for path in found.glob('?.*')} == {'a.pgm.png', 'b.pbm.png', 'c.ppm', 'd.jp2.png'}


def test_a_picture_is_upright_and_in_the_order_of_opencv(tmp_path):
    red = Image.new('RGB', (4, 2), 'red')
    exif = red.getexif()
    exif[0x0112] = 6
    red.save(tmp_path / 'a.png', exif=exif)
    for upright, shape in ((True, (4, 2, 3)), (False, (2, 4, 3))):
        (_, picture), = Detector(lambda picture, score: FOUND, 'ab', upright).pictures([tmp_path / 'a.png'])
        assert picture.shape == shape
        assert picture[0, 0].tolist() == [0, 0, 255]
