"""The commands of detectors, each run on scenes of real digits in the order in which a user runs them."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest

from timm_se_plugin.commands import main
from timm_se_plugin.files.tables import read_table
from timm_se_plugin.measuring.device import processor
from timm_se_plugin.measuring.provenance import commit

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

pytestmark = pytest.mark.mmdet
CONFIG = 'faster-rcnn_se-r18_fpn_digits'


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """Folder of `timm-se detect demo`, and what the command printed on its two outputs."""
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    folder = tmp_path_factory.mktemp('demo')
    ended = subprocess.run(
        [sys.executable, '-m', 'timm_se_plugin', 'detect', 'demo', '--output', str(folder), '--scenes', '12',
         '--epochs', '1'], capture_output=True, text=True, check=True)
    return folder, ended.stdout, ended.stderr


def on(folder, *splits):
    """Options that point the configuration to eight of the scenes."""
    return ['--cfg-options', *(option for split in splits for option in (
        f'{split}_dataloader.dataset.data_root={folder / "scenes"}', f'{split}_dataloader.dataset.indices=8',
        f'{split}_evaluator.ann_file={folder / "scenes" / "instances_val.json"}'))]


def test_the_demo_leaves_a_picture_and_no_chatter_of_other_packages(demo):
    folder, out, err = demo
    assert (folder / 'detections.png').is_file()
    assert 'On scenes of digits that were not trained on: mAP' in out
    for chatter in ('pkg_resources', 'FileClient', 'HardDiskBackend',
                    'creating index', 'index created', 'annotations into memory'):
        assert chatter not in out + err


@pytest.mark.parametrize(('option', 'said'), [('--scenes', 'scenes=5 .* give 12 or more'),
                                              ('--epochs', 'epochs=0 .* give 1 or more')])
def test_a_demo_that_cannot_end_is_refused_at_once(option, said, tmp_path):
    with pytest.raises(SystemExit, match=f'^timm-se: {said}$'):
        main(['detect', 'demo', '--output', str(tmp_path), option, '5' if option == '--scenes' else '0'])


def test_a_training_is_resumed_recorded_and_tested(demo, tmp_path, printed):
    folder, _, _ = demo
    done = printed('detect', 'train', CONFIG, '--work-dir', tmp_path, '--seed', '1', '--record', tmp_path / 'table.csv',
                   *on(folder, 'train', 'val', 'test'), 'train_cfg.max_epochs=1', 'log_level=ERROR')
    assert done == {'work_dir': str(tmp_path)}
    assert (tmp_path / 'epoch_1.pth').is_file()
    row, = read_table(tmp_path / 'table.csv')
    assert (row['model'], row['seed'], row['epochs']) == (CONFIG, '1', '1')
    assert 'train_cfg.max_epochs=1' in row['options'].split()
    assert (row['commit'], row['device']) == (commit(), processor())
    metrics = printed('detect', 'test', CONFIG, tmp_path / 'epoch_1.pth', '--work-dir', tmp_path / 'test',
                      *on(folder, 'test'), 'log_level=ERROR', 'visualizer.name=tested by the command')
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    before = (tmp_path / 'epoch_1.pth').read_bytes()
    with pytest.raises(SystemExit, match='has the checkpoints of a training, which a new one would overwrite'):
        main(['detect', 'train', CONFIG, '--work-dir', str(tmp_path), *on(folder, 'train', 'val', 'test')])
    assert (tmp_path / 'epoch_1.pth').read_bytes() == before


def test_predict_says_the_highest_score_where_it_is_too_low(demo, tmp_path, printed, caplog):
    words = ['detect', 'predict', next((demo[0] / 'scenes' / 'images').iterdir()), '--model', demo[0] / 'detector',
             '--output', tmp_path]
    scores = [box['score'] for box in printed(*words, '--score', '0')[0]['detections']]
    caplog.clear()
    assert printed(*words, '--score', '1')[0]['detections'] == []
    said, = (message for message in caplog.messages if 'no picture has a box' in message)
    assert float(said.split('the highest score of a box is ')[1].split(',')[0]) == pytest.approx(max(scores), abs=1e-4)


def test_predict_and_compare_draw(demo, tmp_path, printed):
    folder, _, _ = demo
    checkpoint = folder / 'detector' / 'epoch_1.pth'
    pictures = sorted((folder / 'scenes' / 'images').iterdir())[:3]
    found = printed('detect', 'predict', CONFIG, checkpoint, *pictures, '--score', '0.01', '--output',
                    tmp_path / 'found')
    assert [result['file'] for result in found] == [str(picture) for picture in pictures]
    assert all(result['detections'] for result in found)
    assert found == json.loads((tmp_path / 'found' / 'detections.json').read_text())
    main(['detect', 'compare', CONFIG, str(checkpoint), '--output', str(tmp_path / 'pairs.png'), '--count', '2',
          *on(folder, 'test')])
    assert (tmp_path / 'pairs.png').is_file()
    assert found == printed('detect', 'predict', *pictures, '--model', folder / 'detector', '--score', '0.01',
                            '--output', tmp_path / 'found')
    with pytest.raises(SystemExit, match='is no folder, hf-hub:user/repo or local-dir:folder'):
        main(['detect', 'predict', str(folder / 'scenes'), '--model', CONFIG])
    with pytest.raises(SystemExit, match='2'):
        main(['detect', 'predict', str(folder / 'scenes'), '--model', CONFIG, '--score', '30'])
    with pytest.raises(SystemExit, match='--int8 is for classifiers'):
        main(['export', str(folder / 'detector'), 'a.onnx', '--pictures', 'any', '--int8', 'any'])


def test_the_folder_of_a_training_is_tested_and_compared(demo, tmp_path, printed):
    work = tmp_path / 'run'
    shutil.copytree(demo[0] / 'detector', work)
    quiet = [*on(demo[0], 'test'), 'log_level=ERROR']
    metrics = printed('detect', 'test', work, *quiet, 'visualizer.name=the folder')
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert len(list(work.rglob('*.log'))) == 1 + len(list((demo[0] / 'detector').rglob('*.log')))
    assert metrics == printed('detect', 'test', work / f'{CONFIG}.py', '--work-dir', tmp_path / 'test',
                              work / 'epoch_1.pth', *quiet, 'visualizer.name=its two files')
    printed('detect', 'compare', work, '--output', tmp_path / 'pairs.png', '--count', '1', *on(demo[0], 'test'))
    assert (tmp_path / 'pairs.png').is_file()
    for words, said in (([CONFIG], f'^timm-se: {CONFIG} is not the folder of a training; the weights of a config'),
                        ([str(tmp_path)], 'no last_checkpoint, as a training leaves'), ([CONFIG, 'a', 'b'], '^2$')):
        with pytest.raises(SystemExit, match=said):
            main(['detect', 'test', *words])
    (work / 'config.json').write_text('{}')
    with pytest.raises(SystemExit, match=r'holds a shared detector, which has no test set; .*/model.safetensors$'):
        main(['detect', 'compare', str(work)])


def test_options_of_a_detector_are_not_ignored_for_a_classifier():
    with pytest.raises(SystemExit, match='--cfg-options changes the configuration of a detector, and resnet18 is none'):
        main(['export', 'resnet18', 'a.onnx', '--pictures', 'any', '--cfg-options', 'model.test_cfg.score_thr=0.2'])


def test_a_pushed_detector_is_predicted_with(demo, tmp_path, printed, hub):
    folder, _, _ = demo
    printed('push', folder / 'detector', 'user/digits')
    assert set(printed('pull', 'user/digits', tmp_path / 'pulled')['files']) == {
        'config.json', 'model.safetensors', 'detector.py'}
    card = hub.repos['user/digits'].files('main')['README.md'].decode()
    assert 'timm-se detect predict hf-hub:user/digits pictures/ --output found' in card
    picture = next((folder / 'scenes' / 'images').iterdir())
    found = [printed('detect', 'predict', place, picture, '--score', '0.01', '--output', tmp_path / 'found')
             for place in ('hf-hub:user/digits', f'local-dir:{tmp_path / "pulled"}')]
    assert found[0][0]['detections']
    assert found[0] == found[1]


def test_a_dry_run_shows_the_configuration(demo, capsys):
    main(['push', str(demo[0] / 'detector'), 'user/digits', '--dry-run'])
    assert '===== detector.py' in capsys.readouterr().out


def test_a_refused_resume_leaves_the_configuration_of_the_folder(demo, tmp_path):
    work = tmp_path / 'detector'
    shutil.copytree(demo[0] / 'detector', work)
    (work / 'last_checkpoint').write_text(str(work / 'epoch_1.pth'))
    before = (work / f'{CONFIG}.py').read_bytes()
    with pytest.raises(SystemExit, match='is not of this detector'):
        main(['detect', 'train', CONFIG, '--work-dir', str(work), '--resume',
              *on(demo[0], 'train', 'val', 'test'), 'model.backbone.attn=sk', 'train_cfg.max_epochs=2',
              'log_level=ERROR', 'visualizer.name=refused'])
    assert (work / f'{CONFIG}.py').read_bytes() == before


def test_offline_a_configuration_says_how_to_go_without_weights(demo):
    with pytest.raises(SystemExit, match=r'cannot be fetched \(.*--cfg-options model.backbone.pretrained=False'):
        main(['detect', 'train', CONFIG, *on(demo[0], 'train', 'val', 'test'), 'model.backbone.pretrained=a1_in1k',
              'model.backbone.model_name=resnet18', 'log_level=ERROR', 'visualizer.name=offline', '--work-dir',
              str(demo[0] / 'offline')])


def test_missing_annotations_are_asked_for_where_they_are_read_twice(tmp_path):
    with pytest.raises(SystemExit, match=r'val_dataloader.dataset.data_root=… val_evaluator.ann_file=…'):
        main(['detect', 'train', CONFIG, '--work-dir', str(tmp_path), '--cfg-options',
              f'val_dataloader.dataset.data_root={tmp_path}', 'train_dataloader.dataset.ann_file='])


def test_a_card_names_depth_and_plugin_layers():
    from mmengine.config import Config

    from timm_se_plugin.detection.configs import read_config
    from timm_se_plugin.sharing.cards import _plugins
    backbone = read_config('faster-rcnn_r50-se-r16-c2-c5_fpn_1x_coco').model.backbone
    assert _plugins(backbone) == '`SEPlugin(rd_ratio=0.0625)` after conv3'
    assert _plugins(Config(dict(type='ResNet', depth=50))) is None


def test_a_device_that_is_none_is_named():
    for words in (('detect', 'cost', 'faster-rcnn_se-r18_fpn_bccd'),
                  ('detect', 'compare', 'faster-rcnn_se-r18_fpn_bccd', 'weights.pth')):
        with pytest.raises(SystemExit, match='timm-se: --device gpu is not a device of torch, such as cpu or cuda:1'):
            main([*words, '--device', 'gpu'])


def test_cost_is_against_the_plain_detector(printed, tmp_path):
    rows = printed('detect', 'cost', CONFIG, '--height', '64', '--width', '64', '--rounds', '2', '--output',
                   tmp_path / 'cost.csv')
    assert [row['model'] for row in rows] == ['plain', 'attention']
    assert rows[1]['attention_params'] > rows[0]['attention_params'] == 0
