"""Training, testing and detecting through the package's own functions, from a tiny COCO folder."""

import copy
import csv
import importlib.util
import json
import pickle
import re
import shutil
import sys
from functools import partial

import pytest
import torch
from detectors import FAMILIES, on_folder

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import cv2
from mmdet.registry import MODELS
from mmengine.hooks import Hook
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS
from safetensors.torch import save_file

from timm_se_plugin.boxes.drawing import draw
from timm_se_plugin.detection import WholeCheckpointHook
from timm_se_plugin.detection.configs import config_path, read_config
from timm_se_plugin.detection.cost import detector_cost
from timm_se_plugin.detection.hub import open_detector
from timm_se_plugin.detection.inference import compare, detect
from timm_se_plugin.detection.records import record_run
from timm_se_plugin.detection.running import test_detector, train_detector
from timm_se_plugin.measuring.provenance import provenance

pytestmark = pytest.mark.mmdet


def metrics_of(runner):
    """COCO's metrics at the last validation of a run."""
    return {name.removeprefix('val/coco/bbox_'): scalar.current()
            for name, scalar in runner.message_hub.log_scalars.items() if name.startswith('val/coco/bbox_')}


def test_a_coco_configuration_trains_validates_tests_resumes_and_detects(coco_folder):
    runner = train_detector(on_folder(coco_folder))
    written, = (coco_folder / 'work').glob('*.py')
    of_training = written.read_text(), written.stat().st_mtime_ns
    assert 'CheckInputHook' not in of_training[0]  # MMDetection's tools read it
    val = metrics_of(runner)
    last = str(coco_folder / 'work' / 'epoch_1.pth')
    metrics = test_detector(on_folder(coco_folder), last, out=str(coco_folder / 'all.pkl'))
    assert metrics == {f'coco/bbox_{name}': value for name, value in val.items()}
    assert (written.read_text(), written.stat().st_mtime_ns) == of_training  # without load_from, which a test has
    dumped = pickle.loads((coco_folder / 'all.pkl').read_bytes())
    assert [picture['img_id'] for picture in dumped] == [0, 1, 2, 3]
    config = on_folder(coco_folder)
    config.train_cfg.max_epochs = 2
    runner = train_detector(config, resume=True)
    assert runner.iter == 4

    for _ in range(2):  # a run that is recorded again replaces itself
        row = record_run(runner, coco_folder / 'results' / 'tiny.csv')
    recorded, curve = (list(csv.DictReader((coco_folder / 'results' / f'{name}.csv').read_text().splitlines()))
                       for name in ('tiny', 'tiny-curves'))
    assert recorded == [{key: str(value) for key, value in row.items()}]
    assert (row['model'], row['epochs']) == ('faster-rcnn_se-r50_fpn_1x_coco', 2)
    assert provenance(torch.device('cpu')).items() <= row.items()
    other = record_run(runner, coco_folder / 'results' / 'tiny.csv', 'model.backbone.attn=sk', 'of the start')
    assert other['commit'] == 'of the start'
    for name, rows in (('tiny', 2), ('tiny-curves', 4)):  # a run with other options has a row beside it
        assert len((coco_folder / 'results' / f'{name}.csv').read_text().splitlines()) == 1 + rows
    last_val = metrics_of(runner)
    assert (row['map'], row['map_50']) == (last_val['mAP'], last_val['mAP_50'])
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert [float(epoch['loss']) for epoch in curve] == [
        pytest.approx(losses[:2].mean(), abs=1e-5), pytest.approx(losses[2:].mean(), abs=1e-5)]
    assert [float(epoch['map']) for epoch in curve] == [val['mAP'], last_val['mAP']]

    results = detect(on_folder(coco_folder), last, [coco_folder / 'images'], coco_folder / 'found', score=0.)
    assert json.loads((coco_folder / 'found' / 'detections.json').read_text()) == results
    for result, picture in zip(results, dumped, strict=True):  # of the same weights and pictures, before rounding
        found = picture['pred_instances']
        assert [box['label'] for box in result['detections']] == [('blue', 'red')[i] for i in found['labels'].tolist()]
        assert [box['bbox'] for box in result['detections']] == [
            pytest.approx(box, abs=0.02) for box in found['bboxes'].tolist()]
    assert cv2.imread(str(coco_folder / 'found' / '0.png')).shape == (80, 96, 3)

    annotated = json.loads((coco_folder / 'annotations.json').read_text())['annotations']
    figure = compare(on_folder(coco_folder), last, coco_folder / 'figures' / 'pairs.png', count=3, score=0.)
    assert figure.shape == (16 + 2 * (40 + 8), 2 * (2 * 48 + 8), 3)
    assert (cv2.imread(str(coco_folder / 'figures' / 'pairs.png')) == figure).all()
    assert (figure[64:, 104:] == 255).all()  # three pictures leave a place free
    (x, y, width, height), half = annotated[0]['bbox'], cv2.resize(
        cv2.imread(str(coco_folder / 'images' / '0.png')), (48, 40), interpolation=cv2.INTER_AREA)
    box = [x / 2, y / 2, (x + width) / 2, (y + height) / 2]
    assert (figure[16:56, :48] == draw(half, [box], ['blue'], classes=['blue', 'red'])).all()
    assert compare(on_folder(coco_folder), last, coco_folder / 'pairs.png', count=6).shape[0] == 16 + 2 * (40 + 8)
    with pytest.raises(ValueError, match='count=0 is not 1 or more'):
        compare(on_folder(coco_folder), last, coco_folder / 'pairs.png', count=0)

    other = on_folder(coco_folder, **{'model.backbone.attn': 'sk'})
    with pytest.raises(ValueError, match=r'is not of this detector: missing backbone.layer1.0.conv1.attn'):
        test_detector(other, last)
    with pytest.raises(ValueError, match=r'epoch_1.pth is not of this detector: missing backbone'):
        detect(on_folder(coco_folder, **{'model.backbone.attn': 'sk'}), last, [coco_folder / 'images'], coco_folder)
    other = on_folder(coco_folder, **{'model.backbone.attn': 'sk'})
    other.load_from = last
    with pytest.raises(ValueError, match='does not fit resnet18_plugin'):  # MMEngine itself would load what fits
        train_detector(other)


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_a_checkpoint_in_the_home_folder_is_tested_as_mmengine_names_it(coco_folder, monkeypatch, name):
    config = on_folder(coco_folder)
    weights = MODELS.build(config.model).state_dict()
    (save_file if name.endswith('.safetensors') else torch.save)(weights, coco_folder / name)
    monkeypatch.setenv('HOME', str(coco_folder))
    assert 'coco/bbox_mAP' in test_detector(config, f'~/{name}')


def test_a_strategy_whose_checkpoints_are_folders_gets_one(coco_folder, monkeypatch):
    class BuiltError(Exception):
        pass

    def build(config):
        raise BuiltError(config.load_from)

    monkeypatch.setattr('mmengine.registry.RUNNERS.build', build)
    config = on_folder(coco_folder, runner_type='FlexibleRunner', strategy={'type': 'DeepSpeedStrategy'})
    with pytest.raises(BuiltError, match='images'):
        test_detector(config, str(coco_folder / 'images'))


def test_a_checkpoint_that_is_not_there_is_named_before_a_runner_is_built(coco_folder, monkeypatch):
    monkeypatch.setattr('mmengine.runner.Runner.from_cfg', lambda *args: pytest.fail('MMEngine logs its settings'))
    with pytest.raises(FileNotFoundError, match=r'there is no checkpoint none\.pth'):
        test_detector(on_folder(coco_folder), 'none.pth')


def test_a_configuration_is_left_as_it_was_given(coco_folder):
    for run in (lambda config: test_detector(config, 'none.pth'),
                lambda config: train_detector(config, resume='none.pth', auto_scale_lr=True)):
        config = on_folder(coco_folder)
        before = copy.deepcopy(config.to_dict())
        with pytest.raises(FileNotFoundError, match='there is no checkpoint'):
            run(config)
        assert config.to_dict() == before  # else the next training would begin with the weights that were tested
    detector_cost(config, batch=1, height=64, width=64, rounds=1)
    assert config.to_dict() == before


def test_the_weights_of_a_shared_detector_are_tested_and_trained_on(coco_folder):
    detector = MODELS.build(on_folder(coco_folder).model)
    shared = str(coco_folder / 'model.safetensors')
    save_file(detector.state_dict(), shared)
    assert 'coco/bbox_mAP' in test_detector(on_folder(coco_folder), shared)
    config = on_folder(coco_folder, **{'optim_wrapper.optimizer.lr': 0.})
    config.load_from = shared
    trained = dict(train_detector(config).model.named_parameters())
    assert all(torch.equal(trained[name], value) for name, value in detector.named_parameters())
    with pytest.raises(ValueError, match=r'has weights alone, .* load_from=FILE in the place of --resume'):
        train_detector(on_folder(coco_folder), resume=shared)


def test_options_are_left_as_they_were_given():
    options = {'model': dict(backbone=dict(_delete_=True, type='TimmAttentionBackbone', model_name='resnet18'))}
    before = copy.deepcopy(options)
    read_config('faster-rcnn_se-r50_fpn_1x_coco', options)
    assert options == before


def replace_everywhere(part, replacements):
    """Give a part of a configuration, and whatever it holds, other values for keys that are there."""
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        replace_everywhere(value, replacements)
    if isinstance(part, dict):
        part.update({key: value for key, value in replacements.items() if key in part})


@HOOKS.register_module(force=True)
class AverageStatistics(Hook):
    """Two steps hardly move running statistics, by which the maps of a deep untrained network would explode."""

    def after_train_epoch(self, runner):
        for module in runner.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        with torch.no_grad():
            for batch in runner.train_dataloader:
                runner.model.extract_feat(runner.model.data_preprocessor(batch, False)['inputs'])


@pytest.mark.slow
# of mmdet's masks under numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize('name', sorted(path.stem for path in config_path(
    'faster-rcnn_se-r50_fpn_1x_coco').parent.glob('*_coco.py')))
def test_every_coco_configuration_trains_validates_and_tests(coco_folder, name):
    def configured():
        config = on_folder(
            coco_folder, name, small=False, custom_hooks=[dict(type='AverageStatistics')])
        replace_everywhere(config.model, {'num_classes': 2, 'score_thr': 0.})  # an untrained one is never sure
        backbone = config.model.backbone  # without published weights, which are a download, and their statistics
        backbone.update({'pretrained': False} if backbone.type == 'TimmAttentionBackbone' else {'init_cfg': None})
        backbone.update(norm_eval=False, frozen_stages=-1)
        return config
    runner = train_detector(configured())
    assert runner.iter == 2
    for metric in ('bbox', 'segm') if 'mask' in name else ('bbox',):
        val = runner.message_hub.get_scalar(f'val/coco/{metric}_mAP').current()
        checkpoint = coco_folder / 'work' / 'epoch_1.pth'
        assert test_detector(configured(), str(checkpoint))[f'coco/{metric}_mAP'] == val
    checkpoint.unlink()  # hundreds of megabytes


def test_missing_annotations_are_named(coco_folder):
    (coco_folder / 'annotations.json').unlink()
    for run in (train_detector, lambda config: test_detector(config, 'any.pth')):
        with pytest.raises(FileNotFoundError, match=r'/annotations.json of (train|test)_dataloader do not .*data_root'):
            run(on_folder(coco_folder))


def test_missing_pictures_are_counted_before_training(coco_folder):
    for i in (1, 2):
        (coco_folder / 'images' / f'{i}.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'2 of the 4 pictures of .*annotations.json do not exist; .*1.png'):
        train_detector(on_folder(coco_folder))
    assert not list((coco_folder / 'work').glob('*.pth'))


@pytest.mark.parametrize(('change', 'said'), [
    pytest.param(lambda data: data.update(images=[], annotations=[]), 'has no images', id='no pictures'),
    pytest.param(lambda data: data.update(annotations=[]), r"has no picture with a box of .* \('blue', 'red'\)",
                 id='no boxes')])
def test_annotations_without_a_box_to_learn_are_refused(coco_folder, change, said):
    data = json.loads((coco_folder / 'annotations.json').read_text())
    change(data)
    (coco_folder / 'annotations.json').write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f'annotations.json {said}'):
        train_detector(on_folder(coco_folder))


def test_random_weights_are_not_frozen(coco_folder, monkeypatch):
    from timm_se_plugin.detection import running
    with pytest.raises(ValueError, match=r'the backbone resnet18 begins without trained weights, and frozen_stages=1 '):
        train_detector(on_folder(coco_folder, **{'model.backbone.frozen_stages': 1}))
    said = []
    monkeypatch.setattr(running, 'print_log', lambda text, *rest: said.append(text))
    running._check_start(on_folder(coco_folder, **{'model.backbone.norm_eval': True}))
    assert 'norm_eval=True keeps the statistics of its BatchNorm layers at 0 and 1' in said[0]
    for weights in ({'load_from': 'a.pth'}, {'model.backbone.pretrained': True}, {'model.backbone.type': 'MyResNet'},
                    {'model.init_cfg': [dict(type='mmengine.Pretrained', checkpoint='a.pth')]},
                    {'model.backbone.init_cfg': dict(type=PretrainedInit, checkpoint='a.pth')}):
        running._check_start(on_folder(
            coco_folder, **{'model.backbone.frozen_stages': 1, 'model.backbone.norm_eval': True, **weights}))
    assert len(said) == 1
    for backbone in ({'model.backbone.type': 'mmengine.TimmAttentionBackbone'},
                     {'model.backbone': dict(_delete_=True, type='ResNeSt', depth=50)},
                     {'model.backbone': dict(_delete_=True, type=MODELS.get('ResNet'), depth=18)}):
        with pytest.raises(ValueError, match=r'begins without trained weights, and frozen_stages=1 '):
            running._check_start(on_folder(coco_folder, **backbone, **{'model.backbone.frozen_stages': 1}))


def test_another_normalisation_than_the_weights_is_told(coco_folder, monkeypatch):
    from timm_se_plugin.detection import running
    said = []
    monkeypatch.setattr(running, 'print_log', lambda text, *rest: said.append(text))
    detector = MODELS.build(on_folder(coco_folder).model)
    running._check_normalisation(detector)  # no published weights
    for mean, count in (((0.485, 0.456, 0.406), 0), ((0.5, 0.5, 0.5), 1)):
        detector.backbone.pretrained_cfg = {'mean': mean, 'std': (0.229, 0.224, 0.225)}
        running._check_normalisation(detector)
        assert len(said) == count
    assert 'set mean=[127.5, 127.5, 127.5], for pictures in the order RGB' in said[0]


def test_flags_reach_the_configuration(coco_folder, monkeypatch):
    from timm_se_plugin.detection import running
    seen = []

    class Recorded:
        def train(self):
            pass
    monkeypatch.setattr(running, '_runner', lambda config, *rest: seen.append((config, *rest)) or Recorded())
    monkeypatch.setattr(running, 'get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match='needs a GPU, and this training would run on cpu; leave out --amp'):
        train_detector(on_folder(coco_folder), amp=True)
    for kind in ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper):
        with pytest.raises(ValueError, match="would run on cpu; in the configuration, set type='OptimWrapper'"):
            train_detector(on_folder(coco_folder, **{'optim_wrapper.type': kind}))
    monkeypatch.setattr(running, 'get_device', lambda: 'cuda')
    train_detector(on_folder(coco_folder), resume='a.pth', amp=True, auto_scale_lr=True, launcher='pytorch',
                   check_pictures=False)
    config, splits, strict, check_pictures = seen[0]
    assert (splits, strict, check_pictures) == (('train', 'val'), True, False)
    assert (config.resume, config.load_from, config.launcher) == (True, 'a.pth', 'pytorch')
    assert (config.optim_wrapper.type, config.optim_wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert config.auto_scale_lr.enable
    train_detector(on_folder(coco_folder, load_from='coco.pth'), resume='auto')
    assert (seen[1][0].resume, seen[1][0].load_from, seen[1][2]) == (False, 'coco.pth', False)  # nothing to resume yet
    (coco_folder / 'work').mkdir()
    torch.save({}, coco_folder / 'work' / 'epoch_1.pth')
    train_detector(on_folder(coco_folder, load_from='coco.pth'), resume='auto')
    assert (seen[2][0].resume, seen[2][0].load_from, seen[2][2]) == (True, None, True)
    train_detector(on_folder(coco_folder, resume=True))
    assert (seen[3][0].resume, seen[3][2]) == (True, True)
    for kind in ('mmengine.WholeCheckpointHook', WholeCheckpointHook):
        train_detector(on_folder(coco_folder, resume=True, **{'default_hooks.checkpoint.type': kind}))
        assert seen[-1][0].resume is True
    torch.save({}, coco_folder / 'work' / 'after-2.pth')
    named = {'default_hooks.checkpoint.filename_tmpl': 'after-{}.pth'}
    (coco_folder / 'work' / 'epoch_1.pth').write_bytes(b'killed')
    train_detector(on_folder(coco_folder, resume=True, **named))
    assert seen[-1][0].resume is True
    (coco_folder / 'work' / 'after-2.pth').write_bytes(b'killed')
    train_detector(on_folder(coco_folder, resume=True, **named))
    assert seen[-1][0].resume is False
    train_detector(on_folder(coco_folder, load_from='coco.pth'), resume='auto')
    train_detector(on_folder(coco_folder, resume=True))
    assert [config.resume for config, *_ in seen[-2:]] == [False, False]
    config = on_folder(coco_folder)
    config.pop('auto_scale_lr')
    with pytest.raises(ValueError, match=r'auto_scale_lr.base_batch_size'):
        train_detector(config, auto_scale_lr=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason='MMEngine starts several processes on GPUs')
def test_several_processes_without_a_gpu_are_refused(coco_folder):
    for run in (train_detector, partial(test_detector, checkpoint='a.pth')):
        with pytest.raises(ValueError, match=r"launcher='pytorch' .* runs on GPUs alone, .* start one process"):
            run(on_folder(coco_folder), launcher='pytorch')


def test_a_silent_run_shows_its_progress(coco_folder, capsys):
    pytest.importorskip('tqdm')
    config = on_folder(coco_folder, custom_hooks=[dict(type='ProgressHook')])
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    train_detector(config)
    assert re.search(r'epoch 1/1: +100%.* 2/2 .*loss=\d', capsys.readouterr().err)


# of mmdet's masks under numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize('by_epoch', [True, False])
def test_metrics_of_masks_and_of_trainings_by_iterations_are_recorded(coco_folder, by_epoch):
    name = 'mask-rcnn_se-r50_fpn_1x_coco'
    config = on_folder(coco_folder, name, small=False, **FAMILIES[name])
    if not by_epoch:
        config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=2)
        config.param_scheduler, config.auto_scale_lr = [], None
        config.default_hooks.checkpoint.update(by_epoch=False)
    runner = train_detector(config)
    log, = (coco_folder / 'work').glob('*/vis_data/scalars.json')
    (coco_folder / 'work' / '0' / 'vis_data').mkdir(parents=True)
    (coco_folder / 'work' / '0' / 'vis_data' / 'scalars.json').write_text(f'{log.read_text()}{{"coco/bbox_mAP": 0.')
    row = record_run(runner, coco_folder / 'tiny.csv')
    hub = runner.message_hub
    assert row['epochs'] == (1 if by_epoch else 1.5)  # of two steps each
    assert (row['map'], row['segm_map']) == tuple(
        hub.get_scalar(f'val/coco/{kind}_mAP').current() for kind in ('bbox', 'segm'))
    curve, = csv.DictReader((coco_folder / 'tiny-curves.csv').read_text().splitlines())
    assert float(curve['loss']) == pytest.approx(hub.get_scalar('train/loss').data[0].mean(), abs=1e-5)
    assert (float(curve['epoch']), float(curve['segm_map_50'])) == (row['epochs'], row['segm_map_50'])


def test_a_run_is_recorded_where_python_does_not_know_its_memory(monkeypatch, tmp_path):
    from timm_se_plugin.detection import records
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 50 < records._peak_memory(tmp_path) < 100_000  # MiB
    monkeypatch.setitem(sys.modules, 'resource', None)  # as on Windows
    assert records._peak_memory(tmp_path) is None


def test_the_peak_on_a_gpu_is_that_of_the_training_though_mmengine_sets_it_back(monkeypatch, tmp_path):
    from timm_se_plugin.detection import records
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: 700 * 2**20)  # in the last validation
    (tmp_path / 'vis_data').mkdir()
    assert records._peak_memory(tmp_path) == 700
    (tmp_path / 'vis_data' / 'scalars.json').write_text(
        '{"loss": 1.0, "memory": 900, "step": 1}\n{"loss": 0.9, "memory": 800, "step": 2}\n{"coco/bbox_mAP": 0.1}\n')
    assert records._peak_memory(tmp_path) == 900


def test_a_folder_in_the_place_of_a_configuration_is_told_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'{tmp_path} is a folder; .*--data {tmp_path} and --model, such as'):
        config_path(tmp_path)
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
    (tmp_path / 'mine.py').touch()
    with pytest.raises(FileNotFoundError, match=f'of a training; give {tmp_path}/mine.py and {tmp_path}/epoch_2.pth'):
        config_path(tmp_path)
    elsewhere = tmp_path / 'out_dir' / 'epoch_3.pth'  # where out_dir of the CheckpointHook puts the checkpoints
    elsewhere.parent.mkdir()
    elsewhere.touch()
    (tmp_path / 'last_checkpoint').write_text(str(elsewhere))
    with pytest.raises(FileNotFoundError, match=f'of a training; give {tmp_path}/mine.py and {elsewhere}'):
        config_path(tmp_path)


def test_a_classifier_in_the_place_of_a_detector_is_told_what_it_is(tmp_path):
    (tmp_path / 'last.pth.tar').touch()
    with pytest.raises(FileNotFoundError, match='is the folder of a classifier, which timm-se predict takes'):
        open_detector(str(tmp_path))


def test_a_configuration_is_found_by_name_and_a_wrong_name_helps():
    path = config_path('faster-rcnn_se-r50_fpn_1x_coco')
    assert path == config_path(path) == config_path(f'{path.stem}.py')
    assert path.parent.name == 'mmdet_configs'
    with pytest.raises(FileNotFoundError, match=r'similar names: .*faster-rcnn_se-r50_fpn_1x_coco'):
        config_path('faster-rcnn_se-r50_fpn_coco')
    assert read_config(path, {'model.backbone.attn': 'sk'}).model.backbone.attn == 'sk'
    assert read_config(path).work_dir == 'work_dirs/faster-rcnn_se-r50_fpn_1x_coco'
    assert read_config(path, work_dir='here').work_dir == 'here'


def test_an_option_that_nothing_reads_is_warned_of(caplog):
    read_config('faster-rcnn_se-r18_fpn_digits', {
        'modl.backbone.attn': 'sk', 'data_root': 'mine/', 'model.backbone.attn': 'sk', 'custom_hooks': [],
        'randomness.seed': 1, 'find_unused_parameters': True, 'speed': 1})
    assert [re.sub(', whose.*', '', record.message) for record in caplog.records] == [
        "--cfg-options modl.backbone.attn: MMEngine does not read 'modl'; did you mean 'model'?",
        "--cfg-options data_root: MMEngine does not read 'data_root', a variable of the file",
        "--cfg-options speed: MMEngine does not read 'speed'"]


def test_pictures_are_not_written_over(coco_folder):
    with pytest.raises(ValueError, match='holds the pictures, which would be overwritten'):
        detect(on_folder(coco_folder), 'any.pth', [coco_folder / 'images'], f'{coco_folder}/images/')


@pytest.mark.parametrize(('pictures', 'error', 'message'), [
    (['gone.png'], FileNotFoundError, r'there is no file or folder .*gone.png'),
    (['empty'], FileNotFoundError, 'there are no pictures in'),
    (['images', 'other/0.png'], ValueError, 'would be written to one file'),
])
def test_pictures_that_cannot_be_are_named(coco_folder, pictures, error, message):
    (coco_folder / 'empty').mkdir()
    (coco_folder / 'other').mkdir()
    shutil.copy(coco_folder / 'images' / '0.png', coco_folder / 'other')
    with pytest.raises(error, match=message):
        detect(on_folder(coco_folder), 'any.pth', [coco_folder / p for p in pictures], coco_folder / 'found')
