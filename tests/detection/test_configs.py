"""Every configuration on disk is built and trained for a step; the large ones are slow tests."""

import importlib.util
import re
from pathlib import Path

import pytest
import timm
import torch
from detectors import SMALL, configuration

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import timm_se_plugin.detection  # noqa: F401, I001
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from timm_se_plugin.measuring import turns
from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.cost import TrainingLoss, detector_cost, plain_twin, sample_batch
from timm_se_plugin.measuring.provenance import provenance
from timm_se_plugin.weights.mm_config import backbone_attention

pytestmark = pytest.mark.mmdet

FOLDER = Path(__file__).parents[2] / 'mmdet_configs'
CONFIGS = sorted(FOLDER.glob('*.py'))
MMDET_PARAMS = 41_753_056  # of mmdet's own Faster R-CNN R50-FPN; without what it freezes the 41.53 M that it publishes
QUICK = ('faster-rcnn_se-r50_fpn_1x_coco', 'retinanet_se-r50_fpn_1x_coco', 'faster-rcnn_se-r18_fpn_bccd',
         'faster-rcnn_sk-r18_fpn_bccd', 'faster-rcnn_se-r18_fpn_digits')


def build(config):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(config.model)


def loss_of(config, size=96):
    x, samples = sample_batch(2, size, size)
    return TrainingLoss(build(config).train(), samples), x


@pytest.mark.parametrize('path', [
    pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow) for path in CONFIGS])
def test_a_configuration_computes_a_loss_and_gradients(path):
    loss, x = loss_of(configuration(path))
    value = loss(x)
    assert value.isfinite()
    value.backward()
    model = loss.detector
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is None or p.grad.isfinite().all() for p in learning.values())
    assert [name for name, p in learning.items() if p.grad is None and name.startswith(('backbone', 'neck'))] == []
    assert list(model.neck.in_channels) == list(getattr(model.backbone, 'out_channels', (256, 512, 1024, 2048)))


def test_the_issued_configurations_are_there():
    names = {path.stem for path in CONFIGS}
    assert names >= {f'faster-rcnn_{net}_fpn_{epochs}_coco' for epochs in ('1x', '2x')
                     for net in ('se-r50', 'se-r101', 'sk-r50', 'se-x50-32x4d')}
    assert names >= {f'{detector}_se-r50_fpn_1x_coco' for detector in ('mask-rcnn', 'cascade-rcnn', 'retinanet')}
    assert names >= {f'faster-rcnn_{net}_fpn_bccd' for net in ('r18', 'se-r18', 'sk-r18')}


@pytest.mark.parametrize('path', [*CONFIGS, *FOLDER.glob('_base_/*.py')], ids=lambda path: path.stem)
def test_a_configuration_is_short_and_says_how_to_run_it(path):
    text = path.read_text()
    assert len(text.splitlines()) < 25
    assert text.startswith('"""')
    if path in CONFIGS:
        assert re.search(rf'^Run: .*detect train {path.stem}( |$)', text, re.M)
        assert re.search(r'^Hardware: .* Result: ', text, re.M)
        assert configuration(path).default_hooks.checkpoint.type == 'WholeCheckpointHook'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_schedule_ends_with_its_training(path):
    config = configuration(path)
    epochs = {'1x': 12, '2x': 24}.get(path.stem.split('_')[-2], 5 if 'digits' in path.stem else 8)
    assert config.train_cfg.max_epochs == epochs
    assert config.param_scheduler[-1].end == epochs
    assert max(config.param_scheduler[-1].get('milestones', [0])) < epochs


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_pictures_are_normalised_as_the_weights_expect(path):
    model = configuration(path).model
    if model.backbone.type != 'TimmAttentionBackbone':
        return  # mmdet's own
    tag = model.backbone.get('pretrained')
    expected = timm.get_pretrained_cfg(f'{model.backbone.model_name}.{tag}' if tag else 'resnet50.tv_in1k')
    assert model.data_preprocessor.bgr_to_rgb
    for ours, theirs in ((model.data_preprocessor.mean, expected.mean), (model.data_preprocessor.std, expected.std)):
        assert ours == pytest.approx([255 * value for value in theirs], rel=1e-3)


def test_bccd_is_found_by_the_environment(monkeypatch):
    monkeypatch.setenv('TIMM_SE_DATA', '/elsewhere')
    config = read_config('faster-rcnn_se-r18_fpn_bccd')
    assert config.train_dataloader.dataset.data_root == '/elsewhere/bccd/'
    assert config.val_evaluator.ann_file == '/elsewhere/bccd/instances_val.json'
    monkeypatch.delenv('TIMM_SE_DATA')
    assert read_config('faster-rcnn_se-r18_fpn_bccd').train_dataloader.dataset.data_root == 'data/bccd/'


@pytest.mark.parametrize(('name', 'options'), [
    ('faster-rcnn_se-r50_fpn_1x_coco', {}), ('faster-rcnn_r50-se-r16-c2-c5_fpn_1x_coco', {}),
    ('faster-rcnn_r50-se-r16-c2-c5_fpn_1x_coco', {'model.backbone.plugins.0.cfg.type': 'mmengine.SEPlugin'}),
    ('faster-rcnn_sk-r50_fpn_1x_coco', {}),
    ('faster-rcnn_se-r50_fpn_1x_coco', {'model.backbone.model_name': 'seresnet50', 'model.backbone.attn': None,
                                        'model.backbone.pretrained': 'a1_in1k'})])
def test_the_plain_twin_differs_in_attention_alone(name, options):
    config = read_config(name, options)
    twin = build(plain_twin(config))
    names, plain = dict(build(config).named_parameters()), dict(twin.named_parameters())
    if 'sk' not in name:
        assert plain.keys() < names.keys()
        assert all('.se.' in key for key in names.keys() - plain.keys())
    assert sum(p.numel() for p in plain.values()) == MMDET_PARAMS
    with pytest.raises(ValueError, match='has no attention, so there is nothing to compare'):
        plain_twin(plain_twin(config))


@pytest.mark.parametrize('name', ['se_shufflenetv2_050_plugin', 'legacy_seresnet18_plugin'])
def test_the_plain_twin_is_of_the_same_family(name):
    config = read_config('faster-rcnn_se-r50_fpn_1x_coco', {
        'model.backbone.model_name': name, 'model.backbone.attn': None, 'model.backbone.pretrained': False})
    own, plain = (MODELS.build(variant.model.backbone) for variant in (config, plain_twin(config)))
    assert list(plain.state_dict()) == [key for key in own.state_dict() if '.se.' not in key]
    assert [type(norm) for norm in plain.modules() if isinstance(norm, torch.nn.BatchNorm2d)] == [
        type(norm) for norm in own.modules() if isinstance(norm, torch.nn.BatchNorm2d)]


def test_the_attention_of_a_plugin_is_known_with_its_scope():
    backbone = read_config('faster-rcnn_r50-se-r16-c2-c5_fpn_1x_coco').model.backbone
    expected = backbone_attention(backbone)
    backbone.plugins[0].cfg.type = 'mmengine.SEPlugin'
    assert backbone_attention(backbone) == expected


def test_the_cost_of_a_detector_is_compared_with_its_twin_s(monkeypatch):
    now, forward = [0.], TrainingLoss.forward

    def timed(loss, x):
        now[0] += 3 if loss.detector.backbone.attn else 2
        return forward(loss, x)

    monkeypatch.setattr(TrainingLoss, 'forward', timed)  # a step advances the clock by 2 s, or with attention by 3 s
    monkeypatch.setattr(turns.time, 'perf_counter', lambda: now[0])
    lines = []
    plain, attended = detector_cost(
        read_config('faster-rcnn_se-r50_fpn_1x_coco', SMALL), 1, 64, 64, rounds=2, report=lines.append)
    # A block for each stage, by hand: SE's weights, C * C/16 and C/16 * C, and its biases, C/16 and C.
    weights = sum(2 * width * width // 16 for width in (256, 512, 1024, 2048))
    assert attended['attention_macs'] == weights
    assert attended['attention_params'] == weights + sum(width // 16 + width for width in (256, 512, 1024, 2048))
    assert attended['params'] - plain['params'] == attended['attention_params']
    assert plain['attention_params'] == plain['attention_macs'] == 0
    assert [plain[name] for name in ('step_seconds', 'step_ratio', 'saved_bytes_ratio')] == [2, 1, 1]
    assert (attended['step_seconds'], attended['step_ratio']) == (3, 1.5)
    assert attended['saved_bytes_ratio'] == round(attended['saved_bytes'] / plain['saved_bytes'], 4) > 1
    assert lines == ['warm-up 1 of 2', 'warm-up 2 of 2', 'step 1 of 2', 'step 2 of 2']
    made = provenance(torch.device('cpu'))
    assert made.items() <= plain.items()
    assert made.items() <= attended.items()


@pytest.mark.parametrize('numbers', [{'batch': 0}, {'height': 0}, {'width': -32}, {'rounds': 0}])
def test_the_cost_of_nothing_is_not_measured(numbers):
    (name, number), = numbers.items()
    with pytest.raises(ValueError, match=f'{name}={number} is not possible; give numbers from 1 on'):
        detector_cost(read_config('faster-rcnn_se-r50_fpn_1x_coco', SMALL), **numbers)


@pytest.mark.slow
@pytest.mark.parametrize('options', [
    {'model.backbone.frozen_stages': 0}, {'model.backbone.freeze_attention': True}], ids=['stem frozen', 'all frozen'])
def test_se_in_faster_rcnn_keeps_no_more_for_the_backward_pass(options):
    _, attended = detector_cost(read_config('faster-rcnn_se-r50_fpn_1x_coco', options), 1, 320, 320, rounds=1)
    assert attended['saved_bytes_ratio'] <= 1.01
    assert attended['backbone_saved_bytes_ratio'] <= 1.01
