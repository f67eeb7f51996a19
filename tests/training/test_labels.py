"""Pictures with any number of labels each."""

import json
import os
import re
import shutil
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from digit_runs import TINY, equal, job, save_labelled_digits, summary, train, train_in_pieces, weights
from processes import finish, start, start_group
from sklearn.metrics import average_precision_score, f1_score

from timm_se_plugin.files.tables import read_table
from timm_se_plugin.training import evaluate_classifier, parse_evaluation, parse_options, train_classifier
from timm_se_plugin.training.checkpoint import read_checkpoint
from timm_se_plugin.training.images import UnreadableImageError
from timm_se_plugin.training.label_evaluation import LabelEvaluation
from timm_se_plugin.training.labels import read_labels
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.run import Run
from timm_se_plugin.training.splits import class_names, label_by_name, open_split

NAMES = ['even', 'large', 'has a hole']
LABELS = ('--task', 'multilabel')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return save_labelled_digits(tmp_path_factory.mktemp('labelled'))


@pytest.fixture
def own(data, tmp_path):
    """A copy of the data to change."""
    return shutil.copytree(data, tmp_path / 'data')


def run(data, folder, *arguments):
    return train_classifier(parse_options([
        *TINY, *LABELS, '--data-dir', str(data), '--output', str(folder.parent), '--experiment', folder.name,
        *arguments]))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained') / 'run'
    return folder, run(data, folder, '--epochs', '6', '--no-aug', '--opt', 'adamw', '--lr', '1e-2')


def rewrite(path, line, text):
    """Replace a line of a CSV file, which is counted from 1; None takes it away."""
    lines = path.read_text(encoding='utf-8').splitlines()
    lines[line - 1:line] = [] if text is None else [text]
    path.write_text('\n'.join(lines), encoding='utf-8')


def test_labels_are_learned_and_the_checkpoint_says_the_task(trained, tmp_path):
    folder, row = trained
    losses = [float(epoch['train_loss']) for epoch in summary(folder)]
    assert losses[-1] < 0.8 * losses[0]
    assert row['map'] > 0.7
    assert {'val_map', 'val_f1'} < summary(folder)[0].keys()
    assert not {'train_top1', 'val_top1'} & summary(folder)[0].keys()
    metrics = evaluate_classifier(parse_evaluation([
        '--checkpoint', str(folder / 'last.pth.tar'), '--output', str(tmp_path)]))
    assert (metrics['map'], metrics['f1'], metrics['images']) == (row['map'], row['f1'], 50)
    assert json.loads((tmp_path / 'metrics.json').read_text())['map'] == row['map']
    classes = read_table(tmp_path / 'classes.csv')
    assert [line['class'] for line in classes] == NAMES
    assert np.mean([float(line['average_precision']) for line in classes]) == pytest.approx(row['map'], abs=1e-4)
    best = max(float(epoch['val_map']) for epoch in summary(folder))
    assert read_checkpoint(folder / 'model_best.pth.tar')['best'] == pytest.approx(best)


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
@pytest.mark.parametrize('written', ['NFC', 'NFD'])
def test_an_accent_in_a_path_is_the_same_in_either_spelling(tmp_path, form, written):
    folder = tmp_path / normalize('NFD' if form == 'NFC' else 'NFC', 'données')
    folder.mkdir()
    (folder / normalize(form, 'café.png')).touch()
    path = folder / 'train.csv'
    path.write_text(normalize(written, 'picture,grün\ncafé.png,1\n'), encoding='utf-8')
    reader = read_labels(str(path))
    assert [os.path.isfile(file) for file, _ in reader.samples] == [True]
    assert list(reader.class_to_idx) == [normalize('NFC', 'grün')]


def test_metrics_are_scikit_learns_over_the_labels_that_have_pictures():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(40, 4, generator=generator), torch.rand(40, 4, generator=generator).gt(0.6).float()
    targets[:, 2] = 0
    found, seen = LabelEvaluation.of(logits, targets, 2.0), [0, 1, 3]
    truth, scores = targets[:, seen].numpy(), logits[:, seen].sigmoid().numpy()
    assert found.metrics['map'] == pytest.approx(average_precision_score(truth, scores, average='macro'))
    assert found.metrics['f1'] == pytest.approx(f1_score(truth, scores >= 0.5, average='macro'))
    assert np.isnan(found.average_precision).tolist() == np.isnan(found.f1).tolist() == [False, False, True, False]
    assert (found.images, found.images_per_second) == (40, 20)
    assert np.isnan(LabelEvaluation.of(logits * float('nan'), targets, 1.0).metrics['map'])
    with pytest.raises(ValueError, match='none of the 40 pictures to evaluate on has a label'):
        LabelEvaluation.of(logits, targets * 0, 1.0)


def test_a_run_is_the_same_when_it_is_resumed(data, tmp_path):
    arguments = (*LABELS, '--data-dir', str(data), '--output', str(tmp_path), '--mixup', '0.2', '--smoothing', '0.1',
                 '--class-weight', 'neg_pos', '--model-ema', '--model-ema-decay', '0.9')
    train_classifier(parse_options([*TINY, *arguments, '--recovery-interval', '2', '--experiment', 'whole']))
    train_in_pieces(*arguments, '--experiment', 'part')
    for ema in (False, True):
        assert equal(weights(tmp_path / 'part', ema), weights(tmp_path / 'whole', ema))
    assert summary(tmp_path / 'part') == summary(tmp_path / 'whole')


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(data, tmp_path):
    arguments = (*LABELS, '--data-dir', str(data), '--model', 'test_resnet_plugin', '--model-kwargs', 'attn=se',
                 'norm_layer=groupnorm1', '--model-dtype', 'float64', '--epochs', '1')  # without BatchNorm
    two = job(tmp_path / 'two', *arguments, '--batch-size', '8')
    processes = [start(train, *job(tmp_path / 'one', *arguments)), *start_group(train, two, two)]
    assert [finish(process) for process in processes] == [0, 0, 0]
    rows = [summary(tmp_path / name)[0] for name in ('one', 'two')]
    assert {key: float(value) for key, value in rows[0].items()} == pytest.approx(
        {key: float(value) for key, value in rows[1].items()}, rel=1e-6)


def test_positive_weights_are_counted_from_the_labels(data, tmp_path):
    made = Run(parse_options([*TINY, *LABELS, '--data-dir', str(data), '--output', str(tmp_path), '--class-weight',
                              'neg_pos']), Process(torch.device('cpu')))
    table = np.array([[int(row[name]) for name in NAMES] for row in read_table(data / 'train.csv')])
    assert made.task.criterion.pos_weight.tolist() == pytest.approx((96 / table.sum(0) - 1).tolist())
    x, y = torch.randn(8, 3), torch.from_numpy(table[:8]).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(x, y, pos_weight=made.task.criterion.pos_weight)
    torch.testing.assert_close(made.task.criterion(x, y), expected)


def test_validation_labels_in_another_order_are_the_same_labels(data, own, trained):
    rows = [line.split(',') for line in (own / 'val.csv').read_text().splitlines()]
    (own / 'val.csv').write_text('\n'.join(','.join((row[0], row[3], row[1])) for row in rows))  # one is left out
    options = parse_options([*TINY, *LABELS, '--data-dir', str(own)])
    split = open_split(options, 'validation', training=False)
    label_by_name(split, NAMES, 'validation')
    before = open_split(parse_options([*TINY, *LABELS, '--data-dir', str(data)]), 'validation', training=False)
    for i in range(50):
        found, expected = (each.target_transform(each.reader.samples[i][1]) for each in (split, before))
        assert torch.equal(found, expected * torch.tensor([1, 0, 1]))
    rewrite(own / 'val.csv', 1, 'picture,has a hole,evn')
    with pytest.raises(ValueError, match=r"classes that the model does not know: 'evn' \(did you mean 'even'\?\)"):
        evaluate_classifier(parse_evaluation([
            '--checkpoint', str(trained[0] / 'last.pth.tar'), '--data-dir', str(own)]))


@pytest.mark.parametrize(('line', 'text', 'said'), [
    (1, 'picture', 'has no column for a label on its first line: .*, separated by commas$'),
    (1, 'picture;even;hole', "has no column for a label .*, separated by commas, and not by ';' as here$"),
    (1, 'picture,even,,hole', 'has no name for the column 3 on its first line; name the label, or remove the column$'),
    (1, 'picture,even,even,hole', "has several columns named 'even'"),
    (3, 'train/0/nowhere.png,1,0,0', r"1 of 96 pictures that do not exist: 'train/0/nowhere.png'; paths are rel"),
    (3, 'a.png,1,0', 'line 3, has 3 cells, and the first line names 4 columns'),
    (3, 'a.png,1,,0', "line 3, has '' in the column 'large'; a picture with a label has 1 in its column"),
    (3, 'a.png,1,2,0', "line 3, has '2' in the column 'large'")])
def test_a_file_that_is_no_table_of_labels_is_refused_with_its_line(own, line, text, said):
    rewrite(own / 'train.csv', line, text)
    with pytest.raises(ValueError, match=rf'train\.csv.*{said}'):
        read_labels(str(own / 'train.csv'))


@pytest.mark.parametrize(('yes', 'no'), [('True', 'False'), ('TRUE', 'FALSE'), ('1.0', '0.0')])
def test_cells_are_read_as_pandas_and_spreadsheets_write_them(own, yes, no):
    expected = read_labels(str(own / 'train.csv')).samples
    header, *rows = (own / 'train.csv').read_text().splitlines()
    words = {'1': yes, '0': no}
    (own / 'train.csv').write_text('\n'.join(
        [header, *(','.join((path, *(words[cell] for cell in cells))) for path, *cells in (
            row.split(',') for row in rows))]))
    assert read_labels(str(own / 'train.csv')).samples == expected


def test_the_columns_that_the_page_makes_by_pandas_are_labels(tmp_path, monkeypatch):
    """pandas 3 with pyarrow makes a column without a name for a picture without a label."""
    page = Path(__file__).parents[2] / 'docs' / 'classify.md'
    monkeypatch.chdir(tmp_path)
    exec(re.search(r'```python\n(import pandas.*?)```', page.read_text(encoding='utf-8'), re.S)[1], {})
    assert Path('train.csv').read_text(encoding='utf-8').splitlines() == [
        'picture,beach,sunset', 'photos/0001.jpg,1,1', 'photos/0002.jpg,0,0']


@pytest.mark.parametrize('prefix', ['', './', 'val/../'])
def test_a_picture_on_two_lines_is_refused(own, prefix):
    second = (own / 'train.csv').read_text().splitlines()[1]
    rewrite(own / 'train.csv', 5, prefix + second)
    with pytest.raises(ValueError, match=r'line 5, has the picture .*train/0/\d+.png of line 2 again; a picture has'):
        read_labels(str(own / 'train.csv'))


def test_labels_without_pictures_and_pictures_without_labels_are_logged(own, caplog):
    caplog.set_level('INFO', 'timm_se_plugin')
    lines = (own / 'train.csv').read_text().splitlines()
    (own / 'train.csv').write_text('\ufeff' + '\n'.join([f'{lines[0]},torn', *(f'{line},0' for line in lines[1:])]),
                                   encoding='utf-8')
    reader = read_labels(str(own / 'train.csv'))
    assert '1 label without a picture (torn)' in caplog.text
    empty = sum(not labels for _, labels in reader.samples)
    assert f'{empty} of 96 pictures have no label' in caplog.text
    assert empty


def test_labels_whose_names_are_nearly_equal_are_logged(own, caplog):
    read_labels(str(own / 'train.csv'))
    assert 'letter case' not in caplog.text
    header, *rows = (own / 'train.csv').read_text().splitlines()
    names = ['first_label', 'First Label', 'first label']
    (own / 'train.csv').write_text('\n'.join([','.join([header, *names]), *(f'{row},1,1,1' for row in rows)]))
    read_labels(str(own / 'train.csv'))
    assert "the labels 'First Label' and 'first label' differ only in letter case or blanks" in caplog.text


def test_an_unreadable_picture_is_named_and_can_be_left_out(own, tmp_path):
    for split, line in (('train', 2), ('val', 3)):
        (own / (own / f'{split}.csv').read_text().splitlines()[line].split(',')[0]).write_bytes(b'no picture')
    with pytest.raises(UnreadableImageError, match='/data/train/0/'):
        run(own, tmp_path / 'run', '--epochs', '1')
    run(own, tmp_path / 'other', '--epochs', '1', '--corrupt-images', 'skip')
    metrics = evaluate_classifier(parse_evaluation([
        '--checkpoint', str(tmp_path / 'other' / 'last.pth.tar'), '--corrupt-images', 'skip']))
    assert metrics['images'] == 49


def test_a_share_of_one_file_has_a_part_of_each_label(data):
    def part(split):
        options = parse_options([*LABELS, '--data-dir', str(data / 'train.csv'), '--val-share', '0.25'])
        return open_split(options, split, training=split == 'train')
    train_part, val_part = part('train').reader.samples, part('validation').reader.samples
    assert len(train_part) + len(val_part) == 96
    assert not {path for path, _ in train_part} & {path for path, _ in val_part}
    for label in range(3):
        inside, outside = (sum(label in labels for _, labels in each) for each in (val_part, train_part))
        assert inside / (inside + outside) == pytest.approx(0.25, abs=0.08)
    assert class_names(part('train')) == NAMES


@pytest.mark.parametrize(('arguments', 'said'), [
    (('--data-dir', '{}/train'), r'train has no train\.csv; --task multilabel needs a CSV file for each split'),
    (('--data-dir', '{}/train/0'), r'0 has no train\.csv'),
    (('--data-dir', '{}/train.csv'), r'train\.csv is one file, so that the same .*validate; give --val-share'),
    (('--data-dir', '{}', '--val-share', '0.2'), '--val-share 0.2 is for one CSV file, and .* is a folder with a file'),
    (('--data-dir', '{}', '--num-classes', '4'), '--num-classes 4 is more than the 3 labels of the data'),
    (('--data-dir', '{}', '--class-map', 'map.txt'), 'whose columns are the labels; leave out --class-map'),
    (('--dataset', 'hfds/food', '--data-dir', '{}'), 'whose columns are the labels; leave out --dataset'),
    (('--data-dir', '{}/train.csv', '--task', 'classification'), '--task multilabel reads a CSV file')])
def test_data_that_do_not_fit_the_task_are_refused(data, tmp_path, arguments, said):
    given = [argument.format(data) for argument in arguments]
    with pytest.raises(ValueError, match=said):
        Run(parse_options([*TINY, *LABELS, '--output', str(tmp_path), *given]), Process(torch.device('cpu')))


def test_pictures_of_both_splits_are_logged(own, tmp_path, caplog):
    shutil.copy(own / 'train.csv', own / 'val.csv')
    options = parse_options([*TINY, *LABELS, '--data-dir', str(own), '--output', str(tmp_path)])
    Run(options, Process(torch.device('cpu')))
    assert '96 of 96 validation pictures that were compared are also trained on' in caplog.text


def test_what_compares_classes_refuses_labels(trained, tmp_path):
    from timm_se_plugin.analysis import analyze, parse_analysis
    from timm_se_plugin.analysis.pruning_study import pruning_study
    checkpoint = str(trained[0] / 'last.pth.tar')
    with pytest.raises(ValueError, match='a picture of --task multilabel has any number of labels'):
        analyze(parse_analysis(['--checkpoint', checkpoint, '--output', str(tmp_path)]))
    with pytest.raises(ValueError, match='a picture of this training has any number of labels'):
        pruning_study(checkpoint, [0.5], ['mean'], 1, 0.1, tmp_path / 'table.csv', tmp_path)


def test_paths_with_backslashes_of_windows_are_found(own):
    file = own / 'train.csv'
    expected = read_labels(str(file)).samples
    file.write_text(file.read_text(encoding='utf-8').replace('/', '\\'), encoding='utf-8')
    assert read_labels(str(file)).samples == expected


def test_a_quotation_mark_without_its_second_is_a_message(own):
    path = own / 'train.csv'
    path.write_text('picture,even\n"a.png,1\n' + 'b.png,0\n' * 20_000, encoding='utf-8')
    with pytest.raises(ValueError, match=r'train\.csv, line \d+, is not CSV: field larger than field limit'):
        read_labels(str(path))
