"""`timm-se detect train --data FOLDER --model CONFIG`, and a configuration whose base is one of this package's."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import mmdet
from detectors import SMALL_COCO
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, init_default_scope

from timm_se_plugin.commands import main
from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.own_data import config_for_folder
from timm_se_plugin.detection.running import train_detector
from timm_se_plugin.files.tables import read_table

pytestmark = pytest.mark.mmdet

ROOT = Path(__file__).parents[2]
BASE = 'timm_se_plugin::{}.py'
# A backbone without published weights, all of which learns.
FROM_SCRATCH = {
    f'model.backbone.{name}': value for name, value in (
        ('pretrained', False), ('frozen_stages', -1), ('norm_eval', False))}


class FirstStepError(Exception):
    pass


@HOOKS.register_module(force=True)
class EndAtFirstStep(Hook):
    """Ends a run that is not refused, at its first step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise FirstStepError


@pytest.fixture
def mine(coco_folder, tmp_path_factory):
    """Four pictures in COCO's format, each of which is in both splits."""
    folder = tmp_path_factory.mktemp('data') / 'my cells'
    (folder / 'annotations').mkdir(parents=True)
    (coco_folder / 'images').rename(folder / 'images')
    for split in ('train', 'val'):
        (folder / 'annotations' / f'{split}.json').write_text((coco_folder / 'annotations.json').read_text())
    return folder


@pytest.fixture
def small(tmp_path):
    """A user's configuration: a base of this package, made small, for an epoch."""
    path = tmp_path / 'small-rcnn_1x_coco.py'
    config = Config({'log_level': 'ERROR'})
    config.merge_from_dict({**SMALL_COCO, 'train_cfg.max_epochs': 1, 'visualizer.name': tmp_path.name})
    steps = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True},
             {'type': 'Resize', 'scale': (96, 80), 'keep_ratio': True}, {'type': 'PackDetInputs'}]
    config.merge_from_dict({f'{split}_dataloader': {'num_workers': 0, 'persistent_workers': False, 'dataset': {
        'pipeline': steps}} for split in ('train', 'val', 'test')})
    path.write_text(f'_base_ = {BASE.format("faster-rcnn_se-r50_fpn_1x_coco")!r}\n{config.pretty_text}')
    return path


def test_a_folder_trains_and_its_configuration_trains_again(mine, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / 'work_dirs' / 'small-rcnn_1x_my-cells'
    main(['detect', 'train', '--data', str(mine), '--model', str(small), '--auto-scale-lr', '--record', 'table.csv',
          '--cfg-options', 'optim_wrapper.optimizer.lr=1'])
    row, = read_table(tmp_path / 'table.csv')
    assert (row['model'], row['options']) == (
        'small-rcnn_1x_my-cells', f'auto_scale_lr=True data={mine} optim_wrapper.optimizer.lr=1')
    assert (run / 'epoch_1.pth').is_file()
    written = run / 'small-rcnn_1x_my-cells.py'
    config = Config.fromfile(written)
    assert '_base_' not in written.read_text()
    assert config.optim_wrapper.optimizer.lr == 1
    for split in ('train', 'val', 'test'):
        data = config[f'{split}_dataloader'].dataset
        assert (data.data_root, data.ann_file, data.data_prefix, data.metainfo) == (
            str(mine), f'annotations/{"train" if split == "train" else "val"}.json', {'img': 'images/'},
            {'classes': ('blue', 'red')})
    assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == str(mine / 'annotations' / 'val.json')
    assert config.model.roi_head.bbox_head.num_classes == 2
    assert config.auto_scale_lr == {'base_batch_size': 16, 'enable': True}
    main(['detect', 'train', str(written), '--work-dir', 'again', '--cfg-options', 'visualizer.name=again'])
    assert (tmp_path / 'again' / 'epoch_1.pth').is_file()
    main(['detect', 'test', str(written), str(run / 'epoch_1.pth'), '--work-dir', 'test', '--cfg-options',
          'visualizer.name=of_own_data'])
    assert list((tmp_path / 'test').glob('*/*.json'))


# of MMEngine, which keeps the visualizer of the first run
@pytest.mark.filterwarnings('ignore:.* instance named of .* has been created:UserWarning')
def test_runs_with_other_shares_to_validate_on_are_recorded_beside_one_another(mine, small, tmp_path):
    (mine / 'annotations' / 'val.json').unlink()
    for share, folder in (('0.25', f'{mine}/'), ('0.5', str(mine)), ('0.5', f'{mine}/../{mine.name}')):
        main(['detect', 'train', '--data', folder, '--model', str(small), '--val-share', share, '--seed', '0',
              '--work-dir', str(tmp_path / folder.replace('/', '') / share), '--record', str(tmp_path / 'table.csv')])
    assert [row['options'] for row in read_table(tmp_path / 'table.csv')] == [
        f'data={mine} val_share=0.25', f'data={mine} val_share=0.5']


def test_digits_in_the_format_of_yolo_train_and_validate(tmp_path):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    from timm_se_plugin.detection.digit_scenes import write_digit_scenes
    scenes, mine = tmp_path / 'scenes', tmp_path / 'mine'
    write_digit_scenes(scenes, train=8, val=4)
    for split in ('train', 'val'):
        data = json.loads((scenes / f'instances_{split}.json').read_bytes())
        for image in data['images']:
            for folder in ('images', 'labels'):
                (mine / folder / split).mkdir(parents=True, exist_ok=True)
            (scenes / 'images' / image['file_name']).rename(mine / 'images' / split / image['file_name'])
            boxes = [(box['category_id'] - 1, *box['bbox']) for box in data['annotations']
                     if box['image_id'] == image['id']]
            (mine / 'labels' / split / image['file_name']).with_suffix('.txt').write_text(''.join(
                f'{label} {(x + w / 2) / 96} {(y + h / 2) / 96} {w / 96} {h / 96}\n' for label, x, y, w, h in boxes))
    (mine / 'data.yaml').write_text(f'train: images/train\nval: images/val\nnames: {list("0123456789")}\n')
    main(['detect', 'train', '--data', str(mine), '--model', 'faster-rcnn_se-r18_fpn_digits', '--work-dir',
          str(tmp_path / 'run'), '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1',
          'log_level=ERROR', 'visualizer.name=digits'])
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    logged = next((tmp_path / 'run').glob('*/vis_data/scalars.json')).read_text()
    assert 0 <= json.loads(logged.splitlines()[-1])['coco/bbox_mAP'] <= 1


@pytest.mark.slow
def test_tools_of_mmdetection_run_the_written_configuration(mine, small, tmp_path):
    main(['detect', 'train', '--data', str(mine), '--model', str(small), '--work-dir', str(tmp_path / 'run')])
    tools = Path(mmdet.__file__).parent / '.mim' / 'tools'
    # The import gives them the operators that mmcv-lite lacks.
    code = ('import runpy, sys, timm_se_plugin.detection; del sys.argv[0]; '
            'runpy.run_path(sys.argv[0], run_name="__main__")')
    for words in (['train.py'], ['test.py', str(tmp_path / 'run' / 'epoch_1.pth')]):
        subprocess.run([sys.executable, '-c', code, str(tools / words[0]),
                        str(tmp_path / 'run' / 'small-rcnn_1x_my-cells.py'), *words[1:], '--work-dir',
                        str(tmp_path / 'theirs')], check=True, cwd=tmp_path)
    assert (tmp_path / 'theirs' / 'epoch_1.pth').is_file()


def test_the_warm_up_lasts_an_epoch_of_as_many_processes_as_the_launcher_starts(mine, tmp_path, monkeypatch):
    monkeypatch.setenv('SLURM_NTASKS', '2')
    ends = [config_for_folder('faster-rcnn_se-r50_fpn_1x_coco', mine, tmp_path / launcher, launcher=launcher, options={
        'train_dataloader.batch_size': 1}).param_scheduler[0].end for launcher in ('none', 'slurm')]
    assert ends == [4, 2]  # of four pictures; in a shell of Slurm's, one process is one


def test_a_configuration_may_name_its_classes_with_their_scope(mine, tmp_path):
    config = config_for_folder('faster-rcnn_se-r50_fpn_1x_coco', mine, tmp_path, options={
        'param_scheduler.0.type': 'mmengine.LinearLR',
        **{f'{split}_evaluator': {'type': 'mmdet.CocoMetric', 'metric': 'proposal'} for split in ('val', 'test')}})
    assert config.param_scheduler[0].end == 2
    assert config.val_evaluator.metric == config.test_evaluator.metric == 'proposal'


def test_the_folder_of_another_training_is_left_as_it_is(mine, tmp_path):
    name, run = 'faster-rcnn_se-r50_fpn_1x_coco', tmp_path / 'run'
    (mine / 'annotations' / 'val.json').unlink()
    config_for_folder(name, mine, run, 0.25)
    kept = {path: path.read_bytes() for path in run.rglob('*.json')}
    assert len(kept) == 2  # another share would divide the pictures otherwise
    (run / 'last_checkpoint').write_text('epoch_12.pth')
    with pytest.raises(FileExistsError, match='run has the checkpoints of a training, which a new one would overwrite'):
        config_for_folder(name, mine, run, 0.5)
    with pytest.raises(FileExistsError, match=r'which one that continues from other/epoch_3.pth would overwrite'):
        config_for_folder(name, mine, run, 0.5, resume='other/epoch_3.pth')
    assert all(path.read_bytes() == content for path, content in kept.items())
    for resume in (True, 'auto', str(run / 'epoch_3.pth')):
        assert config_for_folder(name, mine, run, 0.25, resume=resume).work_dir == str(run)


def test_a_training_that_goes_on_with_other_data_of_the_same_name_is_logged(mine, tmp_path, caplog):
    name, run, other = 'faster-rcnn_se-r50_fpn_1x_coco', tmp_path / 'run', tmp_path / 'other' / mine.name
    config = config_for_folder(name, mine, run)
    run.mkdir()
    config.dump(config.filename)
    shutil.copytree(mine, other)
    for same in (mine, mine / '..' / mine.name):
        config_for_folder(name, same, run, resume=True)
    assert 'was begun' not in caplog.text
    config_for_folder(name, other, run, resume=True)
    assert f'the training in {run} was begun with the data in {mine}, and goes on with those in {other}' in caplog.text


@pytest.mark.parametrize('text', ['', 'train_dataloader = dict(\n    batch_size='])
def test_a_training_that_was_killed_while_it_wrote_its_configuration_is_continued(mine, tmp_path, text):
    name, run = 'faster-rcnn_se-r50_fpn_1x_coco', tmp_path / 'run'
    run.mkdir()
    file = Path(config_for_folder(name, mine, run).filename)
    file.write_text(text, encoding='utf-8')
    assert config_for_folder(name, mine, run, resume=True).filename == str(file)


def test_the_folder_of_a_run_may_be_an_option_of_the_configuration(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, options = 'faster-rcnn_se-r50_fpn_1x_coco', {'work_dir': 'runs/a'}
    config = config_for_folder(name, mine, options=options)
    assert (config.work_dir, Path(config.filename).parent) == ('runs/a', Path('runs/a'))
    (tmp_path / 'runs' / 'a').mkdir(parents=True)
    (tmp_path / 'runs' / 'a' / 'last_checkpoint').write_text('epoch_12.pth')
    with pytest.raises(FileExistsError, match='runs/a has the checkpoints of a training'):
        config_for_folder(name, mine, options=options)
    with pytest.raises(FileExistsError, match='runs/a has the checkpoints of a training'):
        config_for_folder(name, mine, 'runs/a', options={'work_dir': 'runs/b'})


# of mmdet's masks under numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize('name', ['retinanet_se-r50_fpn_1x_coco', 'mask-rcnn_se-r50_fpn_1x_coco',
                                  'cascade-rcnn_se-r50_fpn_1x_coco'])
def test_the_heads_of_every_kind_of_detector_get_the_classes(mine, tmp_path, name):
    config = config_for_folder(name, mine, tmp_path / 'run')
    config.merge_from_dict({**FROM_SCRATCH, 'custom_hooks': [dict(type='EndAtFirstStep')],
                            'log_level': 'ERROR', 'visualizer.name': name, 'train_dataloader.num_workers': 0,
                            'train_dataloader.persistent_workers': False,
                            'val_dataloader.num_workers': 0, 'val_dataloader.persistent_workers': False})
    with pytest.raises(FirstStepError):     # behind the check of classes, heads, evaluators and pictures
        train_detector(config)
    assert config.val_evaluator.metric == (['bbox', 'segm'] if 'mask' in name else 'bbox')
    assert 'palette' not in config.train_dataloader.dataset.metainfo


MASK2FORMER = """
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
model = dict(
    backbone=dict(_delete_=True, type='TimmAttentionBackbone', model_name='resnet18', attn='se',
                  model_args=dict(layers=(1, 1, 1, 1))),
    panoptic_head=dict(in_channels=[64, 128, 256, 512], num_queries=4, transformer_decoder=dict(num_layers=1),
                       pixel_decoder=dict(encoder=dict(num_layers=1))))
log_level = 'ERROR'
visualizer = dict(name='mask2former')
custom_hooks = [dict(type='EndAtFirstStep')]
train_dataloader = val_dataloader = dict(num_workers=0, persistent_workers=False)
"""


# of mmdet's masks under numpy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
# of mmdet's arguments for mmcv
@pytest.mark.filterwarnings('ignore:The arguments `.*` in .* has been deprecated:DeprecationWarning')
def test_mask2former_gets_the_classes_or_is_told_where_to_set_them(mine, tmp_path):
    (tmp_path / 'mask2former.py').write_text(MASK2FORMER)
    config = config_for_folder(tmp_path / 'mask2former.py', mine, tmp_path / 'run')
    assert config.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 0.1]
    for head in (config.model.panoptic_head, config.model.panoptic_fusion_head):
        assert (head.num_things_classes, head.num_stuff_classes) == (2, 0)
    with pytest.raises(FirstStepError):     # behind the check of classes, heads, evaluators and pictures
        train_detector(config)
    config.model.panoptic_head.num_things_classes = 80
    config.visualizer.name = 'mask2former of COCO'
    with pytest.raises(ValueError, match=(r'panoptic_head has num_classes=80, and the data has 2 classes; set '
                                          r'model.panoptic_head.num_things_classes=2')):
        train_detector(config)


def test_a_detector_of_masks_refuses_a_folder_without_masks(mine, tmp_path):
    for file in (mine / 'annotations').iterdir():
        data = json.loads(file.read_text())
        for box in data['annotations']:
            box.pop('segmentation')
        file.write_text(json.dumps(data))
    config = config_for_folder('mask-rcnn_se-r50_fpn_1x_coco', mine, tmp_path / 'run')
    config.merge_from_dict({**FROM_SCRATCH, 'log_level': 'ERROR', 'visualizer.name': 'no masks'})
    with pytest.raises(ValueError, match=r'without a segmentation, .* or train a detector without masks'):
        train_detector(config)


def test_a_configuration_without_data_sets_is_refused(mine, tmp_path):
    (tmp_path / 'bare.py').write_text(f'_base_ = {BASE.format("faster-rcnn_se-r50_fpn_1x_coco")!r}\n'
                                      'val_dataloader = val_cfg = val_evaluator = None')
    with pytest.raises(ValueError, match=r'bare.py has no val_dataloader with a data set, .* with such a _base'):
        config_for_folder(tmp_path / 'bare.py', mine, tmp_path)


def test_the_warm_up_is_an_epoch_at_most(mine, tmp_path, monkeypatch):
    for split in ('train', 'val'):
        file = mine / 'annotations' / f'{split}.json'
        data = json.loads(file.read_text())
        data['images'] = [{**data['images'][i % 4], 'id': i} for i in range(400)]
        file.write_text(json.dumps(data))
    for processes, steps in ((1, 200), (4, 50)):
        monkeypatch.setenv('WORLD_SIZE', str(processes))
        config = config_for_folder('faster-rcnn_se-r50_fpn_1x_coco', mine, tmp_path / 'run')
        assert (config.param_scheduler[0].end, config.param_scheduler[1].end) == (steps, 12)
    config = config_for_folder('faster-rcnn_se-r50_fpn_1x_coco', mine, tmp_path / 'run', options={
        'train_dataloader.batch_size': 10, 'train_dataloader.dataset.ann_file': 'another.json'})
    assert config.param_scheduler[0].end == 10
    bare = config_for_folder('faster-rcnn_se-r50_fpn_1x_coco', mine, tmp_path / 'run', options={
        'auto_scale_lr': None, 'param_scheduler': None})
    assert bare.auto_scale_lr is bare.param_scheduler is None
    assert config.train_dataloader.dataset.ann_file == 'another.json'


@pytest.mark.parametrize('words', [
    [], ['--data', '.'], ['--model', 'a'], ['config', '--val-share', '0.2'], ['config', '--data', '.', '--model', 'a']])
def test_a_training_takes_a_configuration_or_a_folder(words):
    with pytest.raises(SystemExit, match=(
            r'given .*; it takes either a configuration alone, or --data FOLDER .* such as --model faster-rcnn_se-')):
        main(['detect', 'train', *words])


def test_an_interrupted_training_says_how_to_continue(monkeypatch, tmp_path, capsys):
    def fails(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr('timm_se_plugin.detection.running.train_detector', fails)
    with pytest.raises(SystemExit, match='130'):
        main(['detect', 'train', 'faster-rcnn_se-r18_fpn_bccd', '--work-dir', str(tmp_path)])
    assert f'--resume continues from the last checkpoint in {tmp_path}' in capsys.readouterr().err


def test_a_share_of_a_single_split_validates(mine, small, tmp_path):
    (mine / 'annotations' / 'val.json').unlink()
    with pytest.raises(SystemExit, match=r'has no val split .* --val-share 0.2 takes a fifth'):
        main(['detect', 'train', '--data', str(mine), '--model', str(small), '--work-dir', str(tmp_path / 'run')])
    assert not (tmp_path / 'run').exists()
    config = config_for_folder(small, mine, tmp_path / 'run', 0.25)
    for split, count in (('train', 3), ('val', 1), ('test', 1)):
        file = Path(config[f'{split}_dataloader'].dataset.ann_file)
        assert file.parent == tmp_path / 'run' / 'annotations'
        assert len(json.loads(file.read_bytes())['images']) == count


@pytest.mark.skipif('TIMM_SE_DATA' not in os.environ, reason='needs real data in TIMM_SE_DATA')
def test_blood_cells_come_to_the_first_step(tmp_path):
    config = config_for_folder('faster-rcnn_se-r18_fpn_bccd', Path(os.environ['TIMM_SE_DATA'], 'bccd'), tmp_path)
    config.merge_from_dict({'custom_hooks': [dict(type='EndAtFirstStep')], 'log_level': 'ERROR',
                            'visualizer.name': 'cells', 'train_dataloader.num_workers': 0,
                            'train_dataloader.persistent_workers': False})
    assert config.test_dataloader.dataset.ann_file == 'instances_test.json'
    with pytest.raises(FirstStepError):
        train_detector(config)


def test_a_base_of_this_package_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'faster-rcnn_se-r101_fpn_2x_coco'
    for base in (BASE.format(name), f'timm_se_plugin::{name}'):     # also from a file of the same name
        (tmp_path / f'{name}.py').write_text(f'_base_ = {base!r}\nmodel = dict(backbone=dict(attn="eca"))\n')
        config = read_config(f'{name}.py')
        assert (config.model.backbone.model_name, config.model.backbone.attn) == ('resnet101', 'eca')
        assert config.train_cfg.max_epochs == 24
    (tmp_path / 'mine.py').write_text('_base_ = ["timm_se_plugin::_base_/bccd.py", "mmdet::_base_/default_runtime.py"]')
    assert read_config('mine.py').train_dataloader.batch_size == 4
    (tmp_path / 'mine.py').write_text('_base_ = "timm_se_plugin::faster-rcnn_se-r50.py"')
    with pytest.raises(FileNotFoundError, match=r'similar names: .*faster-rcnn_se-r50_fpn_1x_coco'):
        read_config('mine.py')


@pytest.mark.parametrize('block', re.findall(r'^```python\n(_base_ .*?)^```', (
    ROOT / 'docs' / 'detect.md').read_text(encoding='utf-8'), re.M | re.S))
def test_configurations_of_the_page_build_their_detector(tmp_path, block):
    (tmp_path / 'mine.py').write_text(block, encoding='utf-8')
    config = read_config(tmp_path / 'mine.py', {'model.backbone.pretrained': False})
    init_default_scope('mmdet')
    assert MODELS.build(config.model).backbone.attn
    assert config.test_dataloader.dataset.get('metainfo', {}) in ({}, {'classes': ('raccoon',)})
