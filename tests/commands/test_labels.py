"""Pictures with any number of labels, from the training to predictions."""

import csv
import json

import pytest
from digit_runs import TINY, save_labelled_digits

from timm_se_plugin.commands import main

NAMES = {'even', 'large', 'has a hole'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_labelled_digits(tmp_path_factory.mktemp('labelled'))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    main(['train', *TINY, '--task', 'multilabel', '--data-dir', str(data), '--no-aug', '--lr', '1e-2', '--output',
          str(folder), '--experiment', 'run'])
    return folder / 'run'


def labels(rows):
    return [[found['label'] for found in row['classes']] for row in rows]


def test_labels_over_the_threshold_are_predicted(data, trained, printed, tmp_path):
    picture = data / 'val' / '8'
    every = printed('predict', picture, '--model', trained, '--threshold', '0')
    assert all(set(names) == NAMES for names in labels(every))
    assert any(sum(found['score'] for found in row['classes']) != pytest.approx(1, abs=1e-3) for row in every)
    some = printed('predict', picture, '--model', trained, '--output', tmp_path / 'found.csv', '--sheet',
                   tmp_path / 'sheet.png')
    assert labels(some) == [[found['label'] for found in row['classes'] if found['score'] >= 0.5] for row in every]
    with open(tmp_path / 'found.csv', encoding='utf-8') as file:
        assert [row['label'] for row in csv.DictReader(file)] == [
            name for names in labels(some) for name in names or ['']]
    none = printed('predict', picture, '--model', trained, '--threshold', '1', '--sheet', tmp_path / 'none.png',
                   '--output', tmp_path / 'none.json')
    assert labels(none) == [[] for _ in every]
    assert len(json.loads((tmp_path / 'none.json').read_text())) == len(every)
    printed('predict', picture, '--model', trained, '--threshold', '1', '--output', tmp_path / 'none.csv')
    with open(tmp_path / 'none.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row.pop('file') for row in rows] == [row['file'] for row in every]
    assert all(row == {'rank': '', 'label': '', 'score': ''} for row in rows)
    with pytest.raises(SystemExit, match='2'):  # argparse's exit status
        printed('predict', picture, '--model', trained, '--threshold', '50')


def test_every_label_over_the_threshold_is_predicted_however_many(data):
    import torch

    from timm_se_plugin.training.prediction import Classifier, predict
    config = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear',
              'crop_pct': 1.0}
    picture = next((data / 'val' / '8').iterdir())
    for is_multilabel, count in ((True, 9), (False, 5)):
        classifier = Classifier(lambda x: torch.ones(len(x), 9), config, 'abcdefghi', is_multilabel)
        assert len(next(predict(classifier, [picture])).classes) == count
        assert len(next(predict(classifier, [picture], top=2)).classes) == 2


def test_a_threshold_is_for_classes_too(data, printed, tmp_path):
    import timm

    from timm_se_plugin.weights.folders import write_model
    write_model(timm.create_model('se_test_resnet_plugin', num_classes=2), tmp_path / 'saved')
    rows = printed('predict', data / 'val' / '8', '--model', tmp_path / 'saved', '--threshold', '0.5')
    assert all(len(names) == 1 for names in labels(rows))


def test_a_saved_and_a_shared_model_know_that_a_picture_has_any_number_of_labels(
        data, trained, printed, hub, tmp_path):
    picture = data / 'val' / '8'
    expected = printed('predict', picture, '--model', trained, '--threshold', '0')
    printed('push', trained, 'user/labels')
    for weights, folder in (
            (trained / 'model_best.pth.tar', 'converted'), (f'local-dir:{tmp_path}/converted', 'again')):
        main(['convert', str(weights), 'se_test_resnet_plugin', str(tmp_path / folder)])
    said = [json.loads((tmp_path / folder / 'config.json').read_text()) for folder in ('converted', 'again')]
    assert [config['problem_type'] for config in said] == 2 * ['multi_label_classification']
    for model in ('hf-hub:user/labels', tmp_path / 'converted'):
        rows = printed('predict', picture, '--model', model, '--threshold', '0')
        assert [found['score'] for row in rows for found in row['classes']] == pytest.approx(
            [found['score'] for row in expected for found in row['classes']], abs=1e-5)
        assert labels(rows) == labels(expected)
    of_checkpoint, of_saved = (printed('evaluate', *given, '--data-dir', data, '--device', 'cpu') for given in (
        ('--checkpoint', trained / 'model_best.pth.tar'),
        ('--model', f'local-dir:{tmp_path}/converted', '--pretrained')))
    assert of_saved['map'] == pytest.approx(of_checkpoint['map'])


@pytest.mark.slow
def test_an_exported_file_predicts_labels(data, trained, printed, tmp_path):
    for name in ('onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(name, reason='needs the [export] extra')
    small = printed('export', trained, tmp_path / 'labels.onnx', '--pictures', data / 'val', '--int8',
                    data / 'train')['int8']
    found = [labels(printed('predict', data / 'val', '--model', tmp_path / name))
             for name in ('labels.onnx', 'labels-int8.onnx')]
    other = sum(len(set(a) ^ set(b)) for a, b in zip(*found, strict=True))
    assert small['same'] == pytest.approx(1 - other / (len(found[0]) * len(NAMES)))
    assert small['top1_float'] is None
    rows, expected = (printed('predict', data / 'val' / '8', '--model', model, '--threshold', '0')
                      for model in (tmp_path / 'labels.onnx', trained))
    assert [found['score'] for row in rows for found in row['classes']] == pytest.approx(
        [found['score'] for row in expected for found in row['classes']], abs=1e-4)
