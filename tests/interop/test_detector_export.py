"""An exported detector finds what MMDetection finds, in pictures of any size, without MMDetection."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectors import FAMILIES, detector_with_scores, on_folder, write_pictures

if any(importlib.util.find_spec(name) is None for name in ('mmdet', 'onnx', 'onnxruntime')):
    pytest.skip('needs the [export] extra, and the [mmdet] or the [onedl] extra', allow_module_level=True)

import cv2
import onnx
from mmdet.registry import MODELS, TRANSFORMS

import timm_se_plugin.detection  # noqa: F401  (mmdet needs its operators)
from timm_se_plugin.boxes import open_onnx_detector
from timm_se_plugin.boxes.onnx_detector import pasted, prepared
from timm_se_plugin.commands import main
from timm_se_plugin.detection.hub import write_detector
from timm_se_plugin.detection.inference import detector_of
from timm_se_plugin.detection.onnx_export import _description, _pairs, export_detector
from timm_se_plugin.detection.onnx_network import ExportedDetector

pytestmark = [pytest.mark.mmdet, pytest.mark.filterwarnings('ignore::DeprecationWarning')]

@pytest.fixture(scope='module', params=[pytest.param(name, marks=pytest.mark.slow if i else ())
                                        for i, name in enumerate(FAMILIES)])
def case(request, tmp_path_factory):
    """A detector, its folder with config.json, pictures of several sizes, and the exported file."""
    folder = tmp_path_factory.mktemp('case')
    detector = detector_with_scores(request.param, folder)
    (folder / 'saved').mkdir()
    write_detector(detector, folder / 'saved')
    pictures = write_pictures(folder / 'pictures')
    done = export_detector(detector, folder / 'a.onnx', [pictures])
    return detector, folder, done


def test_it_finds_what_mmdetection_finds_in_pictures_of_any_size(case):
    detector, folder, done = case
    assert done.pictures == 4
    assert done.boxes > 100
    assert done.unmatched <= 0.01 * done.boxes
    assert done.largest_score_difference < 1e-4
    assert done.largest_box_difference < 1e-2
    theirs, ours = detector_of(detector), open_onnx_detector(folder / 'a.onnx')
    assert ours.names == ['blau', 'größer']
    for _, picture in ours.pictures(sorted((folder / 'pictures').iterdir())):
        expected, found = theirs.find(picture, 0.3), ours.find(picture, 0.3)
        assert len(_pairs(expected, found)) == len(expected.scores) == len(found.scores) > 0
        if expected.masks is not None:
            assert expected.masks.any()
            assert (expected.masks != found.masks).mean() < 1e-3


def test_the_batch_is_dynamic(case):
    _, folder, _ = case
    import onnxruntime
    session = onnxruntime.InferenceSession(str(folder / 'a.onnx'), providers=['CPUExecutionProvider'])
    x = torch.rand(3, 3, 70, 101).numpy()
    together = session.run(None, {'images': x})
    for i in range(3):
        alone = session.run(None, {'images': x[i:i + 1]})
        for name, batch, one in zip(('boxes', 'scores', 'labels', 'masks'), together, alone, strict=False):
            close = np.isclose(batch[i], one[0], atol=1e-2 if name == 'boxes' else 1e-4)
            assert close.mean() > 0.98  # two almost equal scores may change places


def test_the_metadata_say_what_is_done_before_and_behind(case):
    _, folder, _ = case
    said = json.loads(onnx.load(folder / 'a.onnx').metadata_props[0].value)
    assert said['task'] == 'object-detection'
    assert said['label_names'] == ['blau', 'größer']
    assert said['channel_order'] == 'RGB'
    assert said['mean'] == pytest.approx([0.485, 0.456, 0.406], abs=1e-4)
    assert said['std'] == pytest.approx([0.229, 0.224, 0.225], abs=1e-4)
    assert (said['resize'], said['keep_ratio'], said['pad_size_divisor']) == ([96, 80], True, 32)
    assert said['score_threshold'] == 0.05
    assert said['mask_threshold'] == (0.5 if said['detector'] == 'MaskRCNN' else None)


def test_the_command_runs_the_file_where_mmdetection_cannot_be_imported(case, tmp_path):
    _, folder, _ = case
    code = ('import sys; sys.modules.update(dict.fromkeys(["mmdet", "mmcv", "mmengine", "pycocotools"])); '
            'from timm_se_plugin.commands import main; main(sys.argv[1:])')
    words = ['detect', 'predict', str(folder / 'pictures'), '--score', '0.3']
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *words, '--model', str(folder / 'a.onnx'), '--output',
                    str(tmp_path / 'onnx')], check=True)
    main([*words, '--model', str(folder / 'saved'), '--output', str(tmp_path / 'mmdet')])
    ours, theirs = (json.loads((tmp_path / kind / 'detections.json').read_text(encoding='utf-8'))
                    for kind in ('onnx', 'mmdet'))
    assert {path.name for path in (tmp_path / 'onnx').iterdir()} == {
        '0.png', '1.png', '2.png', '3.png', 'detections.json', 'detections.csv'}
    for mine, other in zip(ours, theirs, strict=True):
        assert mine['file'] == other['file']
        assert sorted(box['label'] for box in mine['detections']) == sorted(box['label'] for box in other['detections'])
        scores = [sorted(box['score'] for box in found['detections']) for found in (mine, other)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-4)
        assert all(('segmentation' in box) == ('mask' in folder.name or 'segmentation' in other['detections'][0])
                   for box in mine['detections'])


def test_the_file_may_come_before_the_pictures(case, tmp_path):
    _, folder, _ = case
    pictures = [str(folder / 'pictures' / f'{i}.png') for i in range(2)]
    main(['detect', 'predict', str(folder / 'a.onnx'), *pictures, '--output', str(tmp_path / 'found')])
    found = json.loads((tmp_path / 'found' / 'detections.json').read_text(encoding='utf-8'))
    assert [result['file'] for result in found] == pictures


def test_a_file_that_finds_something_else_is_not_written(case, tmp_path, monkeypatch):
    detector, folder, _ = case
    forward = ExportedDetector.forward

    def another(self, images):
        return forward(self, images * 1.5)
    monkeypatch.setattr(ExportedDetector, 'forward', another)
    with pytest.raises(ValueError, match='is not written: in 2 pictures MMDetection finds'):
        export_detector(detector, tmp_path / 'b.onnx', [folder / 'pictures'], most=2)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_or_checked_says_why(case, tmp_path):
    detector, folder, _ = case
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='none of the pictures to check the file on can be read'):
        export_detector(detector, tmp_path / 'b.onnx', [tmp_path / 'broken.png'])
    head = detector.roi_head if hasattr(detector, 'roi_head') else detector.bbox_head
    nms = head.test_cfg.nms
    try:
        head.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
        with pytest.raises(ValueError, match='soft_nms'):
            export_detector(detector, tmp_path / 'b.onnx', [folder / 'pictures'])
    finally:
        head.test_cfg.nms = nms
    with pytest.raises(SystemExit, match='is for object-detection; timm-se detect predict takes the file'):
        main(['predict', str(folder / 'pictures'), '--model', str(folder / 'a.onnx')])
    with pytest.raises(SystemExit, match='--cfg-options and --device are not possible with an ONNX file'):
        main(['detect', 'predict', str(folder / 'pictures'), '--model', str(folder / 'a.onnx'), '--device', 'cuda:0'])


@pytest.mark.parametrize(('name', 'parts'), [
    ('SOLO', {'bbox_head': None}), ('Mask2Former', {}), ('FastRCNN', {'roi_head': torch.nn.Identity()})])
def test_a_detector_without_a_head_for_boxes_is_refused_by_its_name(name, parts):
    detector = type(name, (torch.nn.Module,), parts)()
    with pytest.raises(ValueError, match=f'a {name} cannot be exported; a Faster R-CNN, Mask R-CNN or RetinaNet can'):
        ExportedDetector(detector)


def test_a_detector_of_another_kind_is_refused(tmp_path):
    config = on_folder(tmp_path, 'cascade-rcnn_se-r50_fpn_1x_coco', False, **{'model.backbone': dict(
        _delete_=True, type='TimmAttentionBackbone', model_name='resnet18', attn='se')})
    config.model.neck.in_channels = [64, 128, 256, 512]
    with pytest.raises(ValueError, match='with a CascadeRoIHead cannot be exported; detectors with a StandardRoIHead'):
        ExportedDetector(MODELS.build(config.model))


@pytest.mark.parametrize(('change', 'said'), [
    ({'type': 'DoubleConvFCBBoxHead', 'num_convs': 1, 'num_fcs': 1}, 'with a DoubleConvFCBBoxHead cannot be exported'),
    ({'loss_cls': dict(type='SeesawLoss', num_classes=2)}, 'whose scores are computed by SeesawLoss cannot be')])
def test_a_detector_whose_boxes_are_computed_otherwise_is_refused(change, said, tmp_path):
    config = on_folder(tmp_path)
    config.model.roi_head.bbox_head.update(change)
    with pytest.raises(ValueError, match=said):
        ExportedDetector(MODELS.build(config.model))


@pytest.mark.parametrize(('part', 'usual'), [('rpn', 1000), ('rcnn', 100)])
def test_a_detector_that_keeps_all_boxes_is_refused(part, usual, tmp_path):
    config = on_folder(tmp_path, **{f'model.test_cfg.{part}.max_per_img': -1})
    with pytest.raises(ValueError, match=rf'any number of boxes \(max_per_img=-1\); set max_per_img .* {usual}$'):
        ExportedDetector(MODELS.build(config.model))


def test_pictures_are_prepared_as_in_the_test_pipeline(case):
    detector, folder, _ = case
    from mmdet.utils import get_test_pipeline_cfg
    from mmengine.dataset import Compose
    steps = get_test_pipeline_cfg(detector.cfg)
    steps[0].type = 'mmdet.LoadImageFromNDArray'
    said = json.loads(onnx.load(folder / 'a.onnx').metadata_props[0].value)
    picture = cv2.imread(str(folder / 'pictures' / '2.png'))
    data = Compose(steps)(dict(img=picture, img_id=0))
    expected = detector.data_preprocessor({'inputs': [data['inputs']], 'data_samples': [data['data_samples']]})
    found, scale = prepared(picture, said)
    assert scale == pytest.approx(data['data_samples'].scale_factor)
    height, width = found.shape[2:]
    np.testing.assert_allclose(found, expected['inputs'][:, :, :height, :width], atol=1e-5)


def test_pictures_are_padded_as_before_the_detector(case, monkeypatch):
    detector, _, _ = case
    monkeypatch.setattr(detector.data_preprocessor, 'pad_value', 3)
    seen, extract = [], detector.extract_feat
    monkeypatch.setattr(detector, 'extract_feat', lambda x: seen.append(x) or extract(x))
    x = torch.rand(1, 3, 70, 101)
    with torch.no_grad():
        ExportedDetector(detector).eval()(x)
    assert torch.equal(seen[0], torch.nn.functional.pad(x, (0, 27, 0, 26), value=3.))


def test_a_number_is_both_sides_of_the_size(case, monkeypatch):
    detector, _, _ = case
    steps = detector.cfg.test_dataloader.dataset.pipeline
    resize = next(step for step in steps if step['type'].endswith('Resize'))
    monkeypatch.setitem(resize, 'scale', 64)
    for kind in (resize['type'], TRANSFORMS.get('mmdet.Resize')):
        monkeypatch.setitem(resize, 'type', kind)
        assert _description(detector)['resize'] == [64, 64]


def test_a_mask_fills_its_box():
    found = pasted(np.ones((1, 4, 4), np.float32), np.float32([[2, 1, 6, 4]]), (6, 8), 0.5)[0]
    assert found[1:4, 2:6].all()
    assert found.sum() == 12
