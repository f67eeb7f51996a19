"""Detectors that travel: to a Hub on loopback, into another process, and back; and what is refused on the way."""

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectors import SMALL
from hub_server import Repo, in_another_process
from parity import randomised
from safetensors.torch import save

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import numpy as np

import timm_se_plugin.detection  # before mmdet.apis: it provides what mmcv.ops imports
from timm_se_plugin import push_to_hub  # isort: split

from mmdet.apis import inference_detector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.hub import fetch_detector, open_detector, pull_detector, trained_detector, write_detector
from timm_se_plugin.detection.inference import load_detector
from timm_se_plugin.weights.convert import convert
from timm_se_plugin.weights.reading import read_weights

pytestmark = pytest.mark.mmdet

def detector(**options):
    """A small Faster R-CNN with random weights, as ``load_detector`` leaves one."""
    config = read_config('faster-rcnn_se-r18_fpn_digits', {**SMALL, **options})
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    randomised(model.backbone)
    model.cfg, model.dataset_meta = config, dict(classes=tuple('0123456789'))
    return model.eval()


def found_in(model, picture=None):
    if picture is None:
        picture = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    found = inference_detector(model, picture).pred_instances
    return torch.cat((found.bboxes, found.scores[:, None], found.labels[:, None].float()), 1)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Files of a shared detector."""
    folder = tmp_path_factory.mktemp('detector')
    write_detector(detector(), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cells(hub, written):
    """The repository me/cells with a detector in it."""
    repo = hub.repos['me/cells'] = Repo()
    repo.commit('main', written)
    return repo


PULL = """
import sys, numpy, torch
from mmengine.config import Config
Config.fromfile(sys.argv[2])  # by its custom_imports, the first to import the package
from mmdet.apis import inference_detector
from timm_se_plugin.detection.hub import pull_detector
picture = numpy.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=numpy.uint8)
found = inference_detector(pull_detector('hf-hub:me/cells'), picture).pred_instances
torch.save(torch.cat((found.bboxes, found.scores[:, None], found.labels[:, None].float()), 1), sys.argv[1])
"""


def test_a_detector_comes_back_in_another_process_which_its_configuration_prepares(hub, tmp_path):
    model = detector().to(memory_format=torch.channels_last)
    push_to_hub(model, 'me/cells')
    (tmp_path / 'detector.py').write_bytes(hub.repos['me/cells'].files('main')['detector.py'])
    in_another_process(hub.url, tmp_path / 'home', PULL, tmp_path / 'found.pt', tmp_path / 'detector.py')
    expected = found_in(model.to(memory_format=torch.contiguous_format))
    assert len(expected) > 0
    torch.testing.assert_close(torch.load(tmp_path / 'found.pt'), expected, rtol=1e-4, atol=1e-3)


def test_the_repository_holds_what_inference_needs_and_where_weights_came_from_is_not_part_of_it(hub):
    model = detector(**{'model.backbone.pretrained': 'local-dir:/home/somebody/secret'})
    push_to_hub(model, 'me/cells')
    files = hub.repos['me/cells'].files('main')
    assert sorted(files) == ['.gitattributes', 'README.md', 'config.json', 'detector.py', 'model.safetensors']
    described = json.loads(files['config.json'])
    assert described['classes'] == list('0123456789')
    assert described['timm_se_plugin']['attention']['attn'] == 'se'
    assert not any(b'somebody' in data for data in files.values())
    loaded = pull_detector('hf-hub:me/cells')
    assert loaded.backbone.attn == model.backbone.attn
    assert loaded.dataset_meta['classes'] == tuple('0123456789')
    assert torch.equal(found_in(loaded), found_in(model))
    stock = Config.fromstring(files['detector.py'].decode(), '.py')  # MMDetection's own tools read it too
    assert stock.model.backbone.type == 'TimmAttentionBackbone'


def test_attention_gained_by_plain_weights_keeps_its_gate(hub):
    model = detector(**{'model.backbone.model_name': 'resnet18', 'model.backbone.attn': 'se',
                        'model.backbone.pretrained': True})
    assert model.backbone.attn.gate == 'double_sigmoid'
    push_to_hub(model, 'me/cells')
    loaded = pull_detector('hf-hub:me/cells')
    assert loaded.backbone.attn == model.backbone.attn
    assert torch.equal(found_in(loaded), found_in(model))


def test_the_tool_detects_with_a_shared_detector(cells, tmp_path, monkeypatch, capsys):
    import cv2
    cv2.imwrite(str(tmp_path / 'a.png'), np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8))
    tool = Path(timm_se_plugin.__file__).parents[1] / 'tools' / 'detect_image.py'
    monkeypatch.setattr(sys, 'argv', [
        'detect_image.py', 'hf-hub:me/cells', str(tmp_path / 'a.png'), '--score', '0',
        '--output', str(tmp_path / 'out')])
    runpy.run_path(str(tool), run_name='__main__')
    boxes = json.loads((tmp_path / 'out' / 'detections.json').read_text())[0]['detections']
    expected = found_in(pull_detector('hf-hub:me/cells'))
    assert f'{len(expected)} boxes' in capsys.readouterr().out
    assert [[*box['bbox'], box['score'], int(box['label'])] for box in boxes] == [
        pytest.approx(row, abs=0.006) for row in expected.tolist()]  # rounded to two digits, scores to four


def test_the_work_folder_of_a_training_is_pushed(hub, tmp_path):
    model = detector()
    model.cfg.dump(tmp_path / 'faster-rcnn_se-r18_fpn_digits.py')
    checkpoint = {'state_dict': model.state_dict(), 'meta': {'dataset_meta': model.dataset_meta}}
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('/moved/since/epoch_1.pth')
    push_to_hub(tmp_path, 'me/cells')
    assert torch.equal(found_in(pull_detector('hf-hub:me/cells')), found_in(model))
    (tmp_path / 'last_checkpoint').write_text('epoch_2.pth')
    with pytest.raises(FileNotFoundError, match=r'has no epoch_2\.pth'):
        open_detector(str(tmp_path))


def test_a_training_is_opened_with_its_best_checkpoint_and_the_configuration_of_its_own(tmp_path, caplog):
    model = detector()
    last, best = tmp_path / 'epoch_2.pth', tmp_path / 'best_coco_bbox_mAP_epoch_1.pth'
    model.cfg.dump(tmp_path / 'run.py')
    meta = {'dataset_meta': model.dataset_meta, 'cfg': model.cfg.pretty_text}
    torch.save({'state_dict': {key: value + 1 for key, value in model.state_dict().items()}, 'meta': meta}, last)
    (tmp_path / 'last_checkpoint').write_text(str(last))
    assert trained_detector(tmp_path)[1] == str(last)
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, best)
    edited = model.cfg.pretty_text.replace('score_thr=0.05', 'score_thr=0.5')
    assert edited != model.cfg.pretty_text
    (tmp_path / 'edited.py').write_text(edited, encoding='utf-8')  # newer than the copy that MMEngine wrote
    caplog.set_level('INFO')
    config, weights = trained_detector(tmp_path)
    assert (config.pretty_text, weights) == (model.cfg.pretty_text, str(best))
    assert 'run.py with best_coco_bbox_mAP_epoch_1.pth' in caplog.text
    (tmp_path / 'best_coco_bbox_mAP_50_epoch_2.pth').write_bytes(best.read_bytes())
    assert trained_detector(tmp_path)[1] == str(last)
    assert re.search(r'run\.py with epoch_2\.pth, .*several best ones, best_coco_bbox_mAP_50_epoch_2', caplog.text)
    continued = f'{model.cfg.pretty_text.rstrip()}\nresume = True\n'  # MMEngine writes its copy again
    (tmp_path / 'run.py').write_text(continued, encoding='utf-8')
    assert trained_detector(tmp_path)[0].resume
    (tmp_path / 'run.py').write_text(edited.replace('0.5', '0.4'), encoding='utf-8')
    with pytest.raises(ValueError, match=r'2 configurations, edited\.py and run\.py, .*epoch_2\.pth says of none'):
        trained_detector(tmp_path)


def test_the_best_checkpoint_lies_beside_the_last_one_in_the_folder_or_in_another(tmp_path):
    folder, other = tmp_path / 'run', tmp_path / 'out_dir' / 'run'
    for path in (folder, other):
        path.mkdir(parents=True)
        (path / 'best_coco_bbox_mAP_epoch_1.pth').touch()
    (folder / 'run.py').touch()
    (other / 'epoch_2.pth').touch()
    (folder / 'last_checkpoint').write_text(str(other / 'epoch_2.pth'))
    assert trained_detector(folder)[1] == str(other / 'best_coco_bbox_mAP_epoch_1.pth')
    (folder / 'epoch_2.pth').touch()  # a copy of a folder that still exists
    assert trained_detector(folder)[1] == str(folder / 'best_coco_bbox_mAP_epoch_1.pth')


@pytest.mark.parametrize('change', [
    lambda config: config.model.neck.update(type='mmdet.FPN'),
    lambda config: config.test_dataloader.dataset.pipeline[0].update(type='mmdet.LoadImageFromNDArray')])
def test_what_mmdet_itself_writes_into_configurations_is_understood(tmp_path, change):
    model = detector()
    change(model.cfg)
    write_detector(model, tmp_path)
    loaded = pull_detector(f'local-dir:{tmp_path}')
    assert loaded.cfg.test_dataloader.dataset.pipeline[0].type == 'LoadImageFromFile'
    torch.testing.assert_close(found_in(loaded), found_in(detector()))


def test_a_detector_that_does_not_say_what_it_is_is_refused():
    model = detector()
    del model.dataset_meta
    with pytest.raises(ValueError, match='FasterRCNN has no dataset_meta; a detector is shared with its conf'):
        push_to_hub(model, 'me/cells', dry_run=True)


@pytest.mark.parametrize('options', [{}, {  # whose norms have the activations in them
    'model.backbone.model_name': 'mobilenetv1_100', 'model.backbone.model_args': {},
    'model.neck.in_channels': [128, 256, 512, 1024], 'model.backbone.norm_cfg': dict(type='SyncBN')}])
def test_checkpoints_of_parallel_trainings_load_as_they_are(tmp_path, options):
    trained = detector(**options)
    state = {f'module.{key}': value for key, value in trained.state_dict().items()}
    torch.save({'state_dict': state, 'meta': {'CLASSES': ('blue', 'red')}}, tmp_path / 'a.pth')
    loaded = load_detector(trained.cfg, str(tmp_path / 'a.pth'))
    assert loaded.dataset_meta == {'classes': ('blue', 'red')}  # MMDetection 2 has them there
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, other in zip(loaded.backbone(x), trained.backbone(x), strict=True):
            torch.testing.assert_close(mine, other)


def test_a_card_of_a_detector_says_how_to_load_it(hub):
    model = detector()
    text = push_to_hub(model, 'me/cells', dry_run=True).texts['README.md']
    lines = [line for line in text.split('---\n', 2)[2].split('\n') if line and not line.startswith('<!--')]
    assert lines[0].startswith('**Needs `timm_se_plugin` and MMDetection**')
    assert "pull_detector('hf-hub:me/cells')" in text
    assert f'**Parameters**: {sum(p.numel() for p in model.parameters()):,}' in text
    assert 'MACs' not in text


# What is refused.

@pytest.mark.parametrize('attack', [
    "import os\n", "model = __import__('os').system('touch attacked')\n", "model = dict(type=open('attacked', 'w'))\n",
    "with open('attacked', 'w'): pass\n", "model = {**{}}[0]\n", "x: int = 1\n", '(' * 300, 'model = ',
    'a.b = [x for x in y]',
])
def test_a_configuration_that_is_a_program_is_refused_and_not_run(cells, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    cells.commit('main', {'detector.py': cells.files('main')['detector.py'] + attack.encode()})
    with pytest.raises(ValueError, match='refused, since it has more than names and values'):
        pull_detector('hf-hub:me/cells')
    assert not (tmp_path / 'attacked').exists()


@pytest.mark.parametrize(('old', 'new'), [
    ("type='FPN'", "type='os.system'"),  # MMEngine imports a name with a dot
    ("type='FPN'", "type='antigravity'"),  # and a module of that name
    ("type='nms'", "type='__import__(\"os\").system(\"touch attacked\")'"),  # mmcv evaluates it
    ("type='FPN'", "type='CameraMotionCompensation'"),  # which evaluates its warp_mode
    ("type='PackDetInputs'", "type='torch.hub.load'"),
    ("type='FPN'", 'type=1'),
])
def test_a_configuration_builds_only_what_is_registered(cells, tmp_path, monkeypatch, old, new):
    monkeypatch.chdir(tmp_path)
    text = cells.files('main')['detector.py'].decode()
    assert old in text
    cells.commit('main', {'detector.py': text.replace(old, new).encode()})
    with pytest.raises(ValueError, match=r'detector.py asks for .*, which MMDetection does not register'):
        pull_detector('hf-hub:me/cells')
    assert not (tmp_path / 'attacked').exists()
    assert 'antigravity' not in sys.modules


def test_weights_of_another_detector_and_broken_ones_are_refused(cells):
    other = detector(**{'model.backbone.attn_rd_ratio': 1 / 8})
    cells.commit('main', {'model.safetensors': save(other.state_dict())})
    with pytest.raises(ValueError, match=r'is not of this detector: .*of another shape backbone.layer1.0.se'):
        pull_detector('hf-hub:me/cells')
    cells.commit('main', {'model.safetensors': save(other.state_dict())[:-7]})
    with pytest.raises(ValueError, match='truncated or corrupted'):
        pull_detector('hf-hub:me/cells')


def test_a_classifier_is_not_a_detector(hub):
    import timm
    push_to_hub(timm.create_model('se_resnet18_plugin', num_classes=2), 'me/cells')
    with pytest.raises(ValueError, match=r"holds no detector of timm_se_plugin; its config.json says 'se_"):
        fetch_detector('hf-hub:me/cells')


def test_a_backbone_takes_its_weights_from_the_hub(hub):
    import timm
    model = randomised(timm.create_model('se_resnet18_plugin', num_classes=2, layers=(1, 1, 1, 1)))
    push_to_hub(model, 'me/classifier')
    backbone = detector(**{'model.backbone.pretrained': 'hf-hub:me/classifier',
                           'model.backbone.model_name': 'se_resnet18_plugin'}).backbone
    backbone.init_weights()
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert 'GET /me/classifier/resolve/main/model.safetensors' in hub.requests


# Checkpoints of detectors as classifiers.

def checkpoint(tmp_path, backbone, cfg=None):
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    meta = {} if cfg is None else {'cfg': Config(dict(model=dict(type='FasterRCNN', backbone=cfg))).pretty_text}
    torch.save({'state_dict': {**state, 'neck.x.weight': torch.zeros(1)}, 'meta': meta}, tmp_path / 'a.pth')
    return read_weights(tmp_path / 'a.pth')


@torch.no_grad()
def assert_same_features(model, backbone):
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    backbone.double().eval()  # of mmdet's ResNet this returns nothing
    theirs = backbone(x)
    ours = model.double().eval().forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(('cfg', 'name', 'options'), [
    (dict(type='TimmAttentionBackbone', model_name='resnet18', attn='se', attn_gate='tanh'),
     'resnet18_plugin', dict(attn='se', attn_gate='tanh')),
    (dict(type='TimmAttentionBackbone', model_name='resnet18', attn='se', pretrained='a1_in1k'),
     'resnet18_plugin', dict(attn='se', attn_init='identity')),
    (dict(type='TimmAttentionBackbone', model_name='se_resnet18_plugin', pretrained='from_tv_in1k'),
     'se_resnet18_plugin', dict(attn_init='identity')),
    (dict(type='TimmAttentionBackbone', model_name='sk_resnet18_plugin'), 'sk_resnet18_plugin', {}),
    (dict(type='ResNet', depth=50, plugins=[dict(cfg=dict(type='SEPlugin', gate='sigmoid', init='default'),
                                                 position='after_conv3', stages=(True, True, False, True))]),
     'resnet50_plugin', dict(attn='se', attn_stages=(1, 2, 4))),
    (dict(type='AttentionResNet', depth=18, plugins=[dict(cfg=dict(type='SEPlugin'), position='after_conv2')]),
     'resnet18_plugin', dict(attn='se', attn_init='identity')),
])
def test_a_detectors_backbone_becomes_a_classifier(tmp_path, cfg, name, options):
    import timm
    init_default_scope('mmdet')
    backbone = randomised(MODELS.build(dict(cfg)))
    state, meta = checkpoint(tmp_path, backbone, cfg)
    model = timm.create_model(name, num_classes=2, **options)
    conversion = convert(state, model, meta=meta)
    assert conversion.layout == 'mmdet'
    assert conversion.unused == ('neck.x.weight',)
    assert {'fc.weight', 'fc.bias'} <= set(conversion.missing)
    assert_same_features(model, backbone)


@pytest.mark.parametrize(('cfg', 'message'), [
    (None, 'does not say which'),
    (dict(type='AttentionResNet', depth=18, plugins=[dict(cfg=dict(type='SEPlugin'), position='after_conv1')]),
     'SEPlugin has the position after_conv1; .*attention at after_conv2'),
    (dict(type='AttentionResNet', depth=18, plugins=[dict(cfg=dict(type='SEPlugin'), position='after_conv2')]),
     r"attn_gate='sigmoid' \(the weights have 'double_sigmoid'\)"),
    (dict(type='TimmAttentionBackbone', model_name='resnet18', attn='se', attn_squeeze='max'),
     r"attn_squeeze='avg' \(the weights have 'max'\)"),
    (dict(type='TimmAttentionBackbone', model_name='se_resnet18_plugin', pretrained=True),
     r"attn_gate='sigmoid' \(the weights have 'double_sigmoid'\)"),
])
def test_a_detectors_attention_has_to_be_known_and_the_same(tmp_path, cfg, message):
    import timm
    init_default_scope('mmdet')
    backbone = MODELS.build(cfg or dict(type='TimmAttentionBackbone', model_name='resnet18', attn='se'))
    state, meta = checkpoint(tmp_path, backbone, cfg)
    with pytest.raises(ValueError, match=message):
        convert(state, timm.create_model('se_resnet18_plugin', num_classes=2), meta=meta)


def test_caffe_style_strides_are_refused(tmp_path):
    import timm
    cfg = dict(type='ResNet', depth=50, style='caffe')
    init_default_scope('mmdet')
    state, meta = checkpoint(tmp_path, MODELS.build(dict(cfg)), cfg)
    with pytest.raises(ValueError, match="style='caffe'"):
        convert(state, timm.create_model('resnet50_plugin'), meta=meta)
