import json
import os

import pytest
import timm
import torch
from digit_runs import TINY

from timm_se_plugin.commands import main
from timm_se_plugin.training.classifiers import open_classifier
from timm_se_plugin.weights.folders import write_model

onnx = pytest.importorskip('onnx', reason='needs the [export] extra')
pytest.importorskip('onnxruntime', reason='needs the [export] extra')
pytest.importorskip('onnxscript', reason='needs the [export] extra')
pytestmark = pytest.mark.filterwarnings('ignore')  # the exporter's own deprecations


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """Folder of a run."""
    folder = tmp_path_factory.mktemp('runs')
    main(['train', *TINY, '--data-dir', str(digits), '--val-split', 'val', '--output', str(folder), '--experiment',
          'run'])
    return folder / 'run'


def test_an_exported_run_predicts_the_same(trained, digits, printed, tmp_path):
    file = tmp_path / 'digits.onnx'
    done = printed('export', trained, file, '--pictures', digits / 'val')
    assert done['dynamic_batch']
    assert done['pictures'] == 32
    assert done['largest_difference'] < 1e-5
    rows = [printed('predict', digits / 'val', '--model', place, '--batch-size', size)
            for place, size in ((trained, 32), (file, 32), (file, 1))]
    assert [[c['label'] for c in row['classes']] for row in rows[0]] == [
        [c['label'] for c in row['classes']] for row in rows[1]]
    assert rows[1] == rows[2] or all(abs(a['classes'][0]['score'] - b['classes'][0]['score']) < 1e-5
                                     for a, b in zip(rows[1], rows[2], strict=True))
    said = json.loads(onnx.load(file).metadata_props[0].value)
    assert said['label_names'] == [str(i) for i in range(10)]
    assert said['input_size'] == [3, 32, 32]


@pytest.mark.parametrize(('name', 'options'), [('sk_test_resnet_plugin', {}), ('test_resnet_plugin', {'attn': 'cbam'}),
                                               ('se_resnet20_cifar_plugin', {'in_chans': 1})])
def test_every_kind_of_network_is_exported(name, options, digits, printed, tmp_path):
    write_model(timm.create_model(name, num_classes=3, **options), tmp_path / 'saved')
    pictures = digits / 'val' / '3'
    done = printed('export', tmp_path / 'saved', tmp_path / 'a.onnx', '--pictures', pictures, '--int8', pictures)
    assert done['largest_difference'] < 1e-5
    assert (tmp_path / 'a.onnx').stat().st_size == done['bytes']
    assert (tmp_path / 'a-int8.onnx').stat().st_size == done['int8']['bytes']


def test_int8_is_calibrated_on_as_many_pictures_as_it_says(trained, digits, tmp_path):
    from timm_se_plugin.training.classifiers import open_classifier
    from timm_se_plugin.training.onnx_int8 import _Images
    images = _Images(open_classifier(str(trained)), [digits / 'train'], 70)  # of 96
    while images.get_next() is not None:
        pass
    assert images.count == 70
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    with pytest.raises(SystemExit, match='none of the pictures that give the ranges of the activations can be read'):
        main(['export', str(trained), str(tmp_path / 'a.onnx'), '--pictures', str(digits / 'val'), '--int8',
              str(tmp_path)])
    with pytest.raises(SystemExit, match='absent'):
        main(['export', str(trained), str(tmp_path / 'b.onnx'), '--pictures', str(digits / 'val'), '--int8',
              str(tmp_path / 'absent')])
    assert not (tmp_path / 'b.onnx').exists()


def test_int8_is_compared_with_float32_and_recorded(trained, digits, printed, tmp_path):
    done = printed('export', trained, tmp_path / 'digits.onnx', '--pictures', digits / 'val', '--int8',
                   digits / 'train', '--record', tmp_path / 'int8.csv')['int8']
    assert done['file'] == str(tmp_path / 'digits-int8.onnx')
    assert (done['calibration'], done['pictures']) == (96, 50)
    kinds = {tensor.data_type for tensor in onnx.load(done['file']).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    right = []
    for name in ('digits.onnx', 'digits-int8.onnx'):
        rows = printed('predict', digits / 'val', '--model', tmp_path / name)
        right.append(sum(row['file'].split('/')[-2] == row['classes'][0]['label'] for row in rows) / 50)
    assert [done['top1_float'], done['top1_int8']] == right
    assert done['same'] > 0.8
    assert f',{right[0]},{right[1]},' in (tmp_path / 'int8.csv').read_text(encoding='utf-8')


def test_classes_by_number_are_those_of_the_folders_in_order():
    from timm_se_plugin.training.onnx_int8 import _truth
    files = ['a/cat/1.png', 'a/dog/2.png']
    assert _truth(files, ['dog', 'cat']) == {files[0]: 'cat', files[1]: 'dog'}
    assert _truth(files, ['0', '1']) == {files[0]: '0', files[1]: '1'}
    assert _truth(files, ['0', '1', '2']) == {}
    files = [f'class{i}/a.png' for i in range(11)]  # timm's data sets count class10 behind class9
    assert _truth(files, [str(i) for i in range(11)]) == {file: str(i) for i, file in enumerate(files)}


def test_a_file_that_computes_something_else_is_not_written(trained, digits, tmp_path, monkeypatch):
    from timm_se_plugin.training import onnx_file
    classifier = open_classifier(str(trained))
    exported = onnx_file._exported

    def export_another(model, *args):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        exported(model, *args)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.div_(1.5)
    monkeypatch.setattr(onnx_file, '_exported', export_another)
    with pytest.raises(ValueError, match='is not written: ONNX Runtime gives probabilities that differ'):
        onnx_file.export_onnx(classifier, tmp_path / 'a.onnx', [digits / 'val'])
    assert not (tmp_path / 'a.onnx').exists()


def test_what_is_no_file_of_export_is_refused(digits, tmp_path):
    picture = str(next((digits / 'val' / '3').iterdir()))
    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    with pytest.raises(SystemExit, match='is not an ONNX file that ONNX Runtime reads'):
        main(['predict', picture, '--model', str(tmp_path / 'broken.onnx')])
    with pytest.raises(SystemExit, match='is not possible with an ONNX file, which is computed on the CPU'):
        main(['predict', picture, '--model', str(tmp_path / 'broken.onnx'), '--device', 'cuda:0'])
    with pytest.raises(SystemExit, match='needs --int8, whose accuracy it records'):
        main(['export', str(digits), 'a.onnx', '--pictures', picture, '--record', 'int8.csv'])
    torch.onnx.export(torch.nn.Flatten(), (torch.zeros(1, 3, 4, 4),), str(tmp_path / 'other.onnx'), dynamo=True,
                      verbose=False)
    with pytest.raises(SystemExit, match='does not say what its pictures need; timm-se export writes files that do'):
        main(['predict', picture, '--model', str(tmp_path / 'other.onnx')])


def test_names_of_classes_that_are_not_utf8_are_kept(tmp_path):
    from timm_se_plugin.files.onnx_files import CLASSIFIER, described, open_onnx_file
    torch.onnx.export(torch.nn.Flatten(), (torch.zeros(1, 3, 4, 4),), str(tmp_path / 'a.onnx'), dynamo=True,
                      verbose=False)
    names = ['größer', '球', os.fsdecode(b'caf\xe9')]
    (tmp_path / 'b.onnx').write_bytes(described(tmp_path / 'a.onnx', CLASSIFIER, {'label_names': names}))
    assert open_onnx_file(tmp_path / 'b.onnx', CLASSIFIER)[1]['label_names'] == names
