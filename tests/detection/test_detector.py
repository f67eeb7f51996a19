"""Whole detectors from MMDetection's own configs, on operators that nobody compiled."""

import importlib.util

import pytest
import torch
from detectors import configuration

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import timm_se_plugin.detection  # noqa: F401, I001
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from timm_se_plugin.detection import inference

pytestmark = pytest.mark.mmdet

FASTER_RCNN_R18 = '''
_base_ = [{bases}]
custom_imports = dict(imports=['timm_se_plugin.detection'], allow_failed_imports=False)
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32, roi_layer=dict(output_size=3)),
        bbox_head=dict(in_channels=32, roi_feat_size=3, fc_out_channels=64, num_classes=2)))
'''
RUN = '''
data = dict(
    type='CocoDataset', data_root={folder!r}, ann_file='annotations.json', data_prefix=dict(img='images/'),
    metainfo=dict(classes=('blue', 'red')))
pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_shape', 'ori_shape', 'pad_shape', 'scale_factor'))
data['pipeline'] = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 80)), pack]
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={folder!r} + '/annotations.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
optim_wrapper = dict(optimizer=dict(lr=0.002))
default_hooks = dict(checkpoint=dict(type='WholeCheckpointHook'), logger=dict(interval=1))
work_dir = {folder!r} + '/work'
log_level = 'ERROR'
'''
DCN = """
model['backbone'].update(
    depth=50, base_channels=16, dcn=dict(type='{}', deform_groups=1, fallback_on_stride=False),
    stage_with_dcn=(False, False, True, True))
"""
MODEL = "'mmdet::_base_/models/faster-rcnn_r50_fpn.py'"


def config_of(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(text)
    return configuration(path)


def samples(n, size=64):
    gt = InstanceData(bboxes=torch.tensor([[8., 10, 40, 50]]), labels=torch.tensor([1]))
    out = []
    for _ in range(n):
        sample = DetDataSample(metainfo=dict(
            scale_factor=(1., 1.), **dict.fromkeys(
            ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), (size, size))))
        sample.gt_instances = gt
        out.append(sample)
    return out


def build(tmp_path, text):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(config_of(tmp_path, text).model)
    model.init_weights()
    return model


def losses(model, x):
    model.train()
    out = model(x, samples(len(x)), mode='loss')
    return model.parse_losses(out)[0], out


def test_faster_rcnn_trains_a_step_and_predicts(tmp_path):
    model = build(tmp_path, FASTER_RCNN_R18.format(bases=MODEL))
    x = torch.randn(2, 3, 64, 64)
    loss, parts = losses(model, x)
    assert set(parts) == {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'acc'}
    assert loss.isfinite()
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad
        assert losses(model, x)[0] < loss
    model.eval().test_cfg.rcnn.score_thr = 0.
    with torch.no_grad():
        found = model(x, samples(2), mode='predict')[0].pred_instances
    assert found.bboxes.shape[1:] == (4,)
    assert len(found) > 0
    assert ((found.bboxes >= 0) & (found.bboxes <= 64)).all()


@pytest.mark.parametrize('change', [
    pytest.param("model['roi_head']['bbox_roi_extractor']['roi_layer'] = dict("
                 "type='RoIPool', output_size=3, _delete_=True)", id='RoIPool'),
    pytest.param("model['roi_head']['bbox_roi_extractor']['roi_layer'].update(pool_mode='max', sampling_ratio=2)",
                 id='max RoIAlign'),
    pytest.param(DCN.format('DCN'), id='DCN'),
    pytest.param(DCN.format('DCNv2'), id='DCNv2'),
    pytest.param("model['test_cfg'] = dict(rcnn=dict(nms=dict(type='soft_nms', iou_threshold=0.5), score_thr=0.))",
                 id='soft_nms'),
])
def test_what_configs_may_ask_of_the_operators(tmp_path, change):
    model = build(tmp_path, FASTER_RCNN_R18.format(bases=MODEL) + change)
    loss, _ = losses(model, torch.randn(1, 3, 64, 64))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 64, 64), samples(1), mode='predict')


def test_retinanet_uses_the_focal_loss(tmp_path):
    model = build(tmp_path, '''
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(
    backbone=dict(depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=32),
    bbox_head=dict(num_classes=2, in_channels=32, feat_channels=32, stacked_convs=1))
''')
    loss, parts = losses(model, torch.randn(2, 3, 64, 64))
    assert set(parts) == {'loss_cls', 'loss_bbox'}
    loss.backward()
    assert model.bbox_head.retina_cls.weight.grad.abs().sum() > 0


def test_faster_rcnn_trains_in_mixed_precision(tmp_path):
    model = build(tmp_path, FASTER_RCNN_R18.format(bases=MODEL))
    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)  # the sampling of RoIs
    expected = losses(model, x)[0]
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16):
        loss = losses(model, x)[0]
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_runner_trains_evaluates_resumes_and_tests_on_a_coco_folder(coco_folder):
    bases = ', '.join(f"'mmdet::_base_/{name}.py'" for name in (
        'models/faster-rcnn_r50_fpn', 'datasets/coco_detection', 'schedules/schedule_1x', 'default_runtime'))
    config = config_of(coco_folder, FASTER_RCNN_R18.format(bases=bases) + RUN.format(folder=str(coco_folder)))

    def next_runner(name, **changes):
        config.update(experiment_name=name, **changes)
        config.visualizer.name = name  # one to a process
        return Runner.from_cfg(config)

    next_runner('first').train()
    assert (coco_folder / 'work' / 'epoch_1.pth').exists()
    config.train_cfg.max_epochs = 2
    runner = next_runner('resumed', resume=True)
    runner.train()
    assert runner.iter == 4
    metrics = next_runner('tested', resume=False, load_from=str(coco_folder / 'work/epoch_2.pth')).test()
    assert metrics == {name: runner.message_hub.get_scalar(f'val/{name}').current() for name in (
        f'coco/bbox_mAP{kind}' for kind in ('', '_50', '_75', '_s', '_m', '_l'))}


def test_a_detector_of_masks_alone_gets_the_boxes_of_its_masks(monkeypatch):
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 2:5, 1:7] = True  # the other object has no pixel
    found = DetDataSample(pred_instances=InstanceData(
        bboxes=torch.zeros(2, 4), masks=masks, scores=torch.tensor([0.9, 0.8]), labels=torch.tensor([0, 0])))
    monkeypatch.setattr(inference, 'inference_detector', lambda model, picture: found)  # as SOLO gives it
    model = torch.nn.Module()
    model.cfg = Config({'test_dataloader': {'dataset': {'pipeline': [{'type': 'LoadImageFromFile'}]}}})
    model.dataset_meta = {'classes': ('cell',)}
    boxes = inference.detector_of(model).find(torch.zeros(8, 8, 3).byte().numpy(), 0.).boxes
    assert boxes.tolist() == [[1, 2, 7, 5], [0, 0, 0, 0]]
