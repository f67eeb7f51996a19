import json
import sys
from argparse import Namespace

import pytest
import timm
import torch
from digit_runs import TINY
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch.utils._python_dispatch import TorchDispatchMode

from timm_se_plugin import AttentionSpec
from timm_se_plugin.files.tables import read_table
from timm_se_plugin.training import evaluate, evaluate_classifier, parse_evaluation, parse_options, train_classifier
from timm_se_plugin.training.classifiers import open_classifier
from timm_se_plugin.training.loaders import eval_loader
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.splits import open_split
from timm_se_plugin.weights.folders import write_model

CONFIG = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear',
          'crop_pct': 1.0, 'crop_mode': 'center'}


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """A short run: its folder and its row."""
    folder = tmp_path_factory.mktemp('trained')
    row = train_classifier(parse_options(
        [*TINY, '--data-dir', str(digits), '--output', str(folder), '--experiment', 'run', '--model-ema']))
    return folder / 'run', row


def process(rank=0, world_size=1):
    return Process(torch.device('cpu'), rank, world_size)


def loader(digits, *arguments):
    options = parse_options(['--data-dir', str(digits), '--workers', '0', '--batch-size', '16', *arguments])
    return eval_loader(options, open_split(options, 'validation', training=False), CONFIG, process())


def test_accuracies_and_confusion_are_scikit_learns(digits):
    model = timm.create_model('se_test_resnet_plugin', num_classes=10).train()
    outputs = []
    found = evaluate(model, loader(digits), 10, each_output=outputs.append)
    scores = torch.cat(outputs)
    truth = torch.cat([y for _, y in loader(digits)()])
    assert found.images == 50
    assert found.top1 == pytest.approx(top_k_accuracy_score(truth, scores, k=1, labels=range(10)))
    assert found.top5 == pytest.approx(top_k_accuracy_score(truth, scores, k=5, labels=range(10)))
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(scores, truth)))
    expected = confusion_matrix(truth, scores.argmax(1), labels=range(10))
    assert found.confusion.tolist() == expected.tolist()
    torch.testing.assert_close(
        found.class_accuracy, torch.from_numpy(expected.diagonal() / expected.sum(1)).float(), equal_nan=True)
    assert model.training  # as it was


class Small(TorchDispatchMode):
    """Refuses tensors with more elements than `limit`."""

    limit = 2 ** 24

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        assert not isinstance(found, torch.Tensor) or found.numel() < self.limit, function
        return found


def test_memory_grows_with_the_images_and_not_with_the_square_of_the_classes(digits, tmp_path):
    classes = 21_841
    model = timm.create_model('test_resnet', num_classes=classes)
    outputs = []
    with Small():
        found = evaluate(model, loader(digits), classes, each_output=outputs.append)
        evaluate_classifier(parse_evaluation([
            '--model', 'test_resnet', '--num-classes', str(classes), '--data-dir', str(digits), '--workers', '0',
            '--img-size', '32', '--output', str(tmp_path)]))
        assert found.class_accuracy.nansum() >= 0
    truth, guess = torch.cat([y for _, y in loader(digits)()]), torch.cat(outputs).argmax(1)
    expected = sorted(zip(truth.tolist(), guess.tolist(), strict=True))
    assert sorted(tuple(pair) for pair, count in zip(found.pairs.tolist(), found.counts.tolist(), strict=True)
                  for _ in range(count)) == expected
    rows = read_table(tmp_path / 'confusion.csv')
    assert sum(int(row['images']) for row in rows) == 50
    assert len(read_table(tmp_path / 'classes.csv')) == classes


def test_a_label_without_a_class_is_an_error(digits):
    model = timm.create_model('test_resnet', num_classes=5)
    with pytest.raises(ValueError, match=r'the label \d, but the model has only 5 classes; --num-classes'):
        evaluate(model, loader(digits), 5)


def test_an_unreadable_image_does_not_count(tmp_path):
    from digit_runs import save_digits
    save_digits(tmp_path, train=10, val=20)
    next((tmp_path / 'val').glob('*/*.png')).write_bytes(b'')
    model = timm.create_model('test_resnet', num_classes=10)
    assert evaluate(model, loader(tmp_path, '--corrupt-images', 'skip'), 10).images == 19


def test_a_checkpoint_knows_its_model_and_data(trained, tmp_path):
    folder, row = trained
    metrics = evaluate_classifier(parse_evaluation(
        ['--checkpoint', str(folder / 'last.pth.tar'), '--output', str(tmp_path)]))
    assert metrics['top1'] == row['top1']
    assert metrics['top5'] == row['top5']
    assert json.loads((tmp_path / 'metrics.json').read_text())['top1'] == row['top1']
    classes = read_table(tmp_path / 'classes.csv')
    assert [line['class'] for line in classes] == [str(i) for i in range(10)]
    assert sum(int(line['images']) for line in classes) == 50
    assert (tmp_path / 'confusion.png').is_file()


def test_a_checkpoint_that_started_from_published_weights_asks_for_none(tmp_path):
    name, kwargs = 'resnet18_plugin', {'attn': 'se'}
    torch.save({'state_dict': timm.create_model(name, attn_init='identity', num_classes=3, **kwargs).state_dict(),
                'args': Namespace(model=name, model_kwargs=kwargs, num_classes=3, pretrained=True, model_dtype=None)},
               tmp_path / 'timms.pth.tar')
    options = parse_evaluation(['--checkpoint', str(tmp_path / 'timms.pth.tar')])
    assert not options.pretrained
    assert options.model_dtype == 'float32'
    assert AttentionSpec.from_kwargs(options.model_kwargs).gate == 'double_sigmoid'


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / 'args.yaml').touch()
    for path, said in ((tmp_path, 'is not a file$'), (tmp_path / 'last.pth.tar', 'last.pth.tar is not a file$'),
                       (tmp_path / 'args.yaml', r'is not a file of weights, whose name ends in \.pth')):
        with pytest.raises(ValueError, match=f'--checkpoint .*{said}'):
            parse_evaluation(['--checkpoint', str(path)])


@pytest.mark.parametrize('zipped', [True, False])
def test_bare_weights_are_evaluated(digits, tmp_path, zipped, caplog):
    weights = timm.create_model('test_resnet', num_classes=10).state_dict()
    torch.save(weights, tmp_path / 'plain.pth', _use_new_zipfile_serialization=zipped)
    metrics = evaluate_classifier(parse_evaluation(
        ['--checkpoint', str(tmp_path / 'plain.pth'), '--model', 'test_resnet', '--num-classes', '10',
         '--data-dir', str(digits), '--img-size', '32', '--workers', '0']))
    assert metrics['images'] == 50
    assert 'random weights' not in caplog.text


def test_classes_that_the_data_lacks_are_numbers_and_a_warning(digits, tmp_path, caplog):
    evaluate_classifier(parse_evaluation(
        ['--model', 'test_resnet', '--num-classes', '12', '--data-dir', str(digits), '--img-size', '32',
         '--workers', '0', '--output', str(tmp_path)]))
    rows = read_table(tmp_path / 'classes.csv')
    assert [row['class'] for row in rows] == list(rows[0])[3:] == [str(i) for i in range(12)]
    assert 'the data has 10 classes and the model has 12' in caplog.text
    assert 'test_resnet is evaluated with random weights; --pretrained takes published ones' in caplog.text


def test_a_checkpoint_of_another_model_is_an_error(trained):
    checkpoint = str(trained[0] / 'last.pth.tar')
    with pytest.raises(ValueError, match=r"another attention .* attn_gate='tanh' \(the weights have 'sigmoid'\)"):
        evaluate_classifier(parse_evaluation(['--checkpoint', checkpoint, '--model-kwargs', 'attn_gate=tanh']))
    with pytest.raises(ValueError, match=r'--checkpoint .* does not fit --model resnet18 with 10 classes'):
        evaluate_classifier(parse_evaluation(['--checkpoint', checkpoint, '--model', 'resnet18']))


def test_the_averaged_weights_are_a_choice(trained):
    folder, _ = trained
    results = [evaluate_classifier(parse_evaluation(['--checkpoint', str(folder / 'last.pth.tar'), flag]))['loss']
               for flag in ('--use-ema', '--no-use-ema')]
    assert results[0] != results[1]


def test_any_model_of_timm_is_evaluated_at_any_size_and_crop(digits):
    metrics = evaluate_classifier(parse_evaluation(
        ['--model', 'test_vit', '--num-classes', '10', '--data-dir', str(digits), '--input-size', '3', '160', '160',
         '--crop-pct', '160/176', '--workers', '0']))
    assert metrics['images'] == 50
    assert metrics['input_size'] == '3x160x160'


@pytest.mark.parametrize(('size', 'crop', 'resized'), [
    (224, '224/256', 256), (320, '320/352', 352), (224, '224/400', 400), (224, '0.5', 448)])
def test_the_papers_crops_are_cut_from_the_papers_sizes(digits, size, crop, resized):
    options = parse_evaluation(['--data-dir', str(digits), '--crop-pct', crop])
    made = eval_loader(options, open_split(options, 'validation', False), {
        **CONFIG, 'input_size': (3, size, size), 'crop_pct': options.crop_pct}, process())
    resize, cut, _ = made.dataset.transforms(0).transforms
    assert resize.size == resized
    assert cut.size == (size, size)


def test_real_labels_are_for_imagenets_validation_images(digits):
    with pytest.raises(ValueError, match=r"ImageNet's 50,000 validation images .* this split has 50 images"):
        evaluate_classifier(parse_evaluation(
            ['--model', 'test_resnet', '--num-classes', '10', '--data-dir', str(digits), '--real-labels']))


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # timm's reader leaves its tar file open
def test_real_labels_are_timms(tmp_path):
    import io
    import pkgutil
    import tarfile

    from PIL import Image
    buffer = io.BytesIO()
    Image.new('RGB', (4, 4)).save(buffer, 'png')
    with tarfile.open(tmp_path / 'val.tar', 'w') as tar:
        for i in range(50_000):
            member = tarfile.TarInfo(f'n{i % 1000:04d}/ILSVRC2012_val_{i + 1:08d}.JPEG')
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    metrics = evaluate_classifier(parse_evaluation(
        ['--model', 'se_test_resnet_plugin', '--data-dir', str(tmp_path), '--real-labels', '--img-size', '32',
         '--workers', '0', '--batch-size', '500']))
    # Every image is the same, so that every guess is, and the accuracy is the share of labels that name it.
    labels = [label for label in json.loads(pkgutil.get_data('timm.data', '_info/imagenet_real_labels.json')) if label]
    shares = {sum(guess in label for label in labels) / len(labels) for guess in range(1000)}
    assert min(abs(metrics['real_top1'] - share) for share in shares) < 1e-9


def test_classes_that_a_configuration_names_by_their_numbers_name_the_predictions(tmp_path):
    write_model(timm.create_model('se_test_resnet_plugin', num_classes=5), tmp_path,
                {'label_names': dict(enumerate('abcde'))})
    assert open_classifier(str(tmp_path)).names == list('abcde')


@pytest.mark.parametrize('name', ['matplotlib', 'sklearn'])
def test_a_missing_package_ends_no_finished_work(digits, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    task: tuple[str, ...] = ('--data-dir', str(digits))
    if name == 'sklearn':
        for split in ('train', 'val'):
            pictures = [str(path) for path in digits.glob(f'{split}/*/*.png')]
            (tmp_path / f'{split}.csv').write_text('picture,a\n' + ''.join(f'{path},1\n' for path in pictures))
        task = ('--task', 'multilabel', '--data-dir', str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=rf'{name} is not installed; .*"timm-se-plugin\[train\]"'):
        train_classifier(parse_options([*TINY, *task, '--output', str(tmp_path / 'runs')]))
    assert not (tmp_path / 'runs').exists()
    model = ('--model', 'test_resnet', '--num-classes', '10', '--img-size', '32', '--workers', '0')
    with monkeypatch.context() as patch:
        patch.setattr('timm_se_plugin.training.evaluation.evaluate', lambda *_: pytest.fail('evaluated'))
        with pytest.raises(ModuleNotFoundError, match=name):
            evaluate_classifier(parse_evaluation([*model, *task, '--output', str(tmp_path / 'out')]))


def test_a_class_map_with_more_names_than_the_model_has_classes_loses_no_metrics(digits, tmp_path):
    (tmp_path / 'classes.txt').write_text('\n'.join([*map(str, range(10)), 'ten', 'eleven']))
    evaluate_classifier(parse_evaluation([
        '--model', 'test_resnet', '--num-classes', '10', '--data-dir', str(digits), '--workers', '0', '--img-size',
        '32', '--class-map', str(tmp_path / 'classes.txt'), '--output', str(tmp_path)]))
    assert [row['class'] for row in read_table(tmp_path / 'classes.csv')] == [str(i) for i in range(10)]
    assert (tmp_path / 'metrics.json').is_file()


def test_a_saved_model_says_how_its_pictures_are_read(tmp_path):
    write_model(timm.create_model('se_test_resnet_plugin', num_classes=10), tmp_path / 'saved')
    saved, place = tmp_path / 'saved' / 'config.json', ['--model', f'local-dir:{tmp_path / "saved"}', '--pretrained']
    for upright in (True, False):
        saved.write_text(json.dumps({**json.loads(saved.read_text()), 'upright': upright}))
        assert parse_evaluation(place).exif_orientation is upright
    assert parse_evaluation([*place, '--exif-orientation']).exif_orientation
