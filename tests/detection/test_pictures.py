"""What is wrong with the files of pictures is said with their names, before a detector is built or trained."""

import importlib.util
import json
import logging
import shutil
from pathlib import Path

import pytest
from detectors import on_folder
from spoiled import PICTURES, change_annotations

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import BaseStorageBackend, register_backend
from PIL import Image

import timm_se_plugin.detection  # noqa: F401  (mmdet needs its operators)
from timm_se_plugin.boxes import Detector
from timm_se_plugin.boxes.detecting import Found
from timm_se_plugin.boxes.drawing import check_ending
from timm_se_plugin.detection import inference, picture_check
from timm_se_plugin.detection.inference import compare, detect, is_upright
from timm_se_plugin.detection.picture_check import PictureFile, check_pictures
from timm_se_plugin.files.pictures import reason

pytestmark = pytest.mark.mmdet


@pytest.fixture
def said(monkeypatch):
    """What the module logs."""
    texts = []
    monkeypatch.setattr(picture_check, 'print_log', lambda text, level=logging.INFO, **_: texts.append(text))
    return texts


def picture(path, size=(96, 80), **loader):
    return PictureFile(str(path), 0, size, 'annotations.json', LoadImageFromFile(**loader))


def photo(path, size=(96, 80)):
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize('ending', ['jpg', 'png'])
@pytest.mark.parametrize(('kind', 'error', 'message'), [
    ('empty', ValueError, r'empty \(0 bytes\)'),
    ('truncated', ValueError, 'truncated'),
    ('without its last bytes', ValueError, 'truncated'),
    ('header alone', ValueError, '(truncated|LoadImageFromFile)'),
    ('text', ValueError, 'LoadImageFromFile'),
    ('a folder', ValueError, 'directory'),
    ('gone', FileNotFoundError, 'do not exist'),
    ('half as large', ValueError, '48x40 .* as it is loaded, and 96x80 in the annotations'),
    ('turned by its pixels', ValueError, '80x96 .* as it is loaded, and 96x80 in the annotations'),
])
def test_the_first_bad_file_is_named_among_good_ones(tmp_path, ending, kind, error, message):
    files = [photo(tmp_path / f'{i}.{ending}') for i in range(3)]
    check_pictures([picture(file) for file in files])
    PICTURES[kind](files[1])
    with pytest.raises(error, match=rf'(?s)1 of the 3 pictures of annotations.json .*1\.{ending}') as raised:
        check_pictures([picture(file) for file in files])
    raised.match(message)


@pytest.mark.parametrize(('color_type', 'annotated', 'way_out'), [
    ('color', (96, 80), 'color_ignore_orientation'), ('color_ignore_orientation', (80, 96), 'color')])
def test_a_picture_that_its_tag_turns_is_refused_with_the_way_out(tmp_path, color_type, annotated, way_out):
    file = photo(tmp_path / 'a.jpg')
    PICTURES['turned by its tag'](file)
    with pytest.raises(ValueError, match=rf"EXIF orientation is 6, and LoadImageFromFile\(color_type='{way_out}'\)"):
        check_pictures([picture(file, annotated, color_type=color_type)])
    check_pictures([picture(file, annotated, color_type=way_out)])
    check_pictures([picture(file, annotated[::-1], color_type=color_type)])


def test_a_tag_that_turns_without_a_change_of_size_is_logged(tmp_path, said):
    file = photo(tmp_path / 'a.jpg')
    PICTURES['upside down by its tag'](file)
    check_pictures([picture(file)])
    assert said[0].startswith('1 picture has an EXIF orientation')
    assert 'the first of them ' + str(file) in said[0]


@register_backend('renamed')
class Renamed(BaseStorageBackend):
    """A storage whose names are not those of its files."""

    def get(self, filepath):
        with open(filepath.replace('stored:', ''), 'rb') as file:
            return file.read()

    def get_text(self, filepath, encoding='utf-8'):
        return self.get(filepath).decode(encoding)


def test_the_backend_is_asked_for_pictures_that_are_not_local(tmp_path, said):
    far = [picture(f'stored:{photo(tmp_path / f"{i}.png")}', backend_args=dict(backend='renamed')) for i in range(201)]
    check_pictures(far)
    assert 'checked 67 of 201 picture files' in said[0]
    PICTURES['half as large'](tmp_path / '0.png')
    with pytest.raises(ValueError, match=r'stored:.*0.png: 48x40'):
        check_pictures(far)
    PICTURES['gone'](tmp_path / '0.png')
    with pytest.raises(ValueError, match=r'stored:.*0.png cannot be read by LoadImageFromFile: FileNotFoundError'):
        check_pictures(far)


def untrained(config, folder):
    """A checkpoint of a detector as it is built, with the names of its classes."""
    import torch
    from mmdet.registry import MODELS
    model = MODELS.build(config.model)
    torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': {'classes': ('blau', 'größer')}}},
               folder / 'a.pth')
    return str(folder / 'a.pth')


def test_pictures_of_all_kinds_are_detected_in_at_any_depth_and_what_is_left_out_is_said(coco_folder, caplog):
    images, config = coco_folder / 'images', on_folder(coco_folder)
    checkpoint = untrained(on_folder(coco_folder), coco_folder)
    for name in ('a.webp', 'b.tif', 'c.BMP', '球.png', 'upload.png'):
        photo(images / name)
    (images / 'upload.png').rename(images / 'upload')
    for name in ('._0.png', 'notes.txt', 'more.txt'):
        (images / name).write_text('none')
    (images / 'inner' / 'most').mkdir(parents=True)
    shutil.copy(images / '0.png', images / 'inner' / 'most')
    results = detect(config, checkpoint, [images], coco_folder / 'found', score=0.)
    names = [*(f'{i}.png' for i in range(4)), 'a.webp', 'b.tif', 'c.BMP', 'inner/most/0.png', 'upload', '球.png']
    assert [result['file'] for result in results] == [str(images / name) for name in names]
    found = coco_folder / 'found'
    assert {path.relative_to(found).as_posix() for path in found.rglob('*') if path.is_file()} == {
        'detections.json', 'detections.csv', *names} - {'upload'} | {'upload.png'}
    assert 'left out, since no pictures: 2 .txt' in caplog.text
    labels = {box['label'] for result in results for box in result['detections']}
    assert labels
    assert labels <= {'blau', 'größer'}


@pytest.mark.parametrize(('kind', 'message'), [
    ('empty', 'cannot be read'), ('truncated', 'cannot be read'), ('text', 'cannot be read'),
    ('narrow', 'of 20000x20 pixels, cannot be detected in (it is so narrow that resizing leaves nothing of it)')])
def test_a_broken_picture_is_named_and_passed_over_and_nothing_is_detected_in_half_of_one(
        coco_folder, kind, message, caplog):
    config, checkpoint = on_folder(coco_folder), untrained(on_folder(coco_folder), coco_folder)
    PICTURES[kind](coco_folder / 'images' / '2.png')
    results = detect(config, checkpoint, [coco_folder / 'images'], coco_folder / 'found')
    assert [Path(result['file']).name for result in results] == ['0.png', '1.png', '3.png']
    assert json.loads((coco_folder / 'found' / 'detections.json').read_text()) == results
    assert any('2.png' in line and message in line for line in caplog.text.splitlines())
    with pytest.raises(ValueError, match='of 1 file, none is a picture that can be detected in'):
        detect(config, checkpoint, [coco_folder / 'images' / '2.png'], coco_folder / 'found')


def test_results_are_kept_when_a_later_picture_ends_the_work(coco_folder, monkeypatch):
    from timm_se_plugin.boxes import Detector, Found, detecting

    def find(picture, score):
        return Found(np.float32([[1, 2, 30, 40]]), np.float32([0.5]), np.array([1]))
    drawn = iter([detecting._write])

    def write_once(*args):
        next(drawn)(*args)      # the second call ends as an interruption does
    monkeypatch.setattr(detecting, '_write', write_once)
    output = coco_folder / 'found'
    targets = detecting.pictures_to_detect_in([coco_folder / 'images'], output)
    with pytest.raises(StopIteration):
        detecting.detect(Detector(find, ['blau', 'größer']), targets, output)
    kept = json.loads((output / 'detections.json').read_text(encoding='utf-8'))
    assert kept[0]['detections'] == [{'label': 'größer', 'score': 0.5, 'bbox': [1.0, 2.0, 30.0, 40.0]}]
    assert 'größer,0.5,1.0,2.0,30.0,40.0' in (output / 'detections.csv').read_text(encoding='utf-8')


def test_results_in_the_searched_folder_are_not_detected_in_again(coco_folder):
    from timm_se_plugin.boxes import pictures_to_detect_in
    output = coco_folder / 'images' / 'found'
    output.mkdir()
    shutil.copy(coco_folder / 'images' / '0.png', output)
    assert len(pictures_to_detect_in([coco_folder / 'images'], output)) == 4


def test_a_comparison_is_not_drawn_of_pictures_that_were_resized(coco_folder):
    config, checkpoint = on_folder(coco_folder), untrained(on_folder(coco_folder), coco_folder)
    PICTURES['half as large'](coco_folder / 'images' / '0.png')
    with pytest.raises(ValueError, match=r'0.png: 48x40'):
        compare(config, checkpoint, coco_folder / 'pairs.png', count=2)
    shutil.copy(coco_folder / 'images' / '1.png', coco_folder / 'images' / '0.png')
    compare(config, checkpoint, coco_folder / 'pairs.png', count=2)
    assert (coco_folder / 'pairs.png').is_file()


def test_other_errors_of_resizing_are_not_those_of_a_narrow_picture():
    with pytest.raises(cv2.error) as caught:
        cv2.resize(np.zeros((4, 4), np.int32), (2, 2))  # integers of 32 bits, which OpenCV does not resize
    assert 'narrow' not in reason(caught.value)


@pytest.mark.parametrize('name', ['pairs.nothing', 'pairs', 'pairs.pgm'])
def test_a_comparison_that_cannot_be_written_is_refused_before_the_detector_is_loaded(coco_folder, name):
    with pytest.raises(ValueError, match=rf'{name}.* does not end like a picture in colours, such as .*pairs\.png'):
        compare(on_folder(coco_folder), 'absent.pth', coco_folder / name)


def test_a_folder_in_the_place_of_a_picture_is_told_a_name():
    with pytest.raises(ValueError, match=r'^\. does not end like a picture in colours, such as pairs\.png'):
        check_ending('.')


def test_a_picture_one_pixel_wide_is_compared(coco_folder):
    config, checkpoint = on_folder(coco_folder), untrained(on_folder(coco_folder), coco_folder)
    Image.new('RGB', (1, 80)).save(coco_folder / 'images' / '0.png')
    change_annotations(coco_folder / 'annotations.json', lambda data: data['images'][0].update(width=1))
    compare(config, checkpoint, coco_folder / 'pairs.png')
    assert (coco_folder / 'pairs.png').is_file()


def test_pictures_that_are_loaded_in_float32_are_compared_like_others(coco_folder):
    config, checkpoint = on_folder(coco_folder), untrained(on_folder(coco_folder), coco_folder)
    expected = compare(config, checkpoint, coco_folder / 'pairs.png')
    config.test_dataloader.dataset.pipeline[0].to_float32 = True
    assert np.array_equal(compare(config, checkpoint, coco_folder / 'pairs.png'), expected)


def test_pictures_of_16_bits_are_detected_in_as_they_are_and_compared_like_others(coco_folder, monkeypatch):
    config, checkpoint = on_folder(coco_folder), untrained(on_folder(coco_folder), coco_folder)
    seen = []

    def find(picture, score):
        seen.append(picture)
        return Found(np.empty((0, 4)), np.empty(0), np.empty(0, int), None)

    monkeypatch.setattr(inference, 'detector_of', lambda *args: Detector(find, (), True))
    expected = compare(config, checkpoint, coco_folder / 'pairs.png')
    load = inference.load_picture
    monkeypatch.setattr(inference, 'load_picture', lambda source: load(source).astype(np.uint16) * 257)
    assert np.array_equal(compare(config, checkpoint, coco_folder / 'pairs.png'), expected)
    pictures, deep = seen[:len(seen) // 2], seen[len(seen) // 2:]
    assert all(np.array_equal(b, a.astype(np.uint16) * 257) for a, b in zip(pictures, deep, strict=True))


@pytest.mark.parametrize('color_type', ['color', 'unchanged', 'color_ignore_orientation'])
def test_pictures_are_turned_where_the_test_pipeline_turns_them(tmp_path, color_type):
    file = tmp_path / 'a.jpg'
    red = Image.new('RGB', (40, 20), 'red')
    red.getexif()[0x0112] = 6
    red.save(file, exif=red.getexif())
    expected = LoadImageFromFile(color_type=color_type).transform({'img_path': str(file)})['img']
    (_, found), = Detector(None, (), is_upright({'color_type': color_type})).pictures([file])
    assert found.shape == expected.shape
