"""Class folders: a class is its name, every picture is read, and what is left out is said."""

import os
import pickle
import shutil
import subprocess
from argparse import Namespace
from collections import Counter
from itertools import compress

import pytest
import timm
import torch
from digit_runs import TINY
from spoiled import COLOURS, FOLDERS, save_colours, spoil

from timm_se_plugin.files.tables import read_table
from timm_se_plugin.training import evaluate_classifier, parse_evaluation, parse_options, train_classifier
from timm_se_plugin.training.checkpoint import read_checkpoint
from timm_se_plugin.training.folders import read_class_map, read_folder, share_of
from timm_se_plugin.training.network import label_names
from timm_se_plugin.training.splits import class_names, label_by_name, open_split, split_root
from timm_se_plugin.weights.folders import saved_class_names
from timm_se_plugin.weights.runs import names_of_all


def train(data, folder, *arguments):
    return train_classifier(parse_options([
        *TINY, '--no-aug', '--epochs', '3', '--data-dir', str(data), '--output', str(folder.parent),
        '--experiment', folder.name, *arguments]))


def evaluate(run, data, *arguments):
    return evaluate_classifier(parse_evaluation(
        ['--checkpoint', str(run / 'last.pth.tar'), '--data-dir', str(data), *arguments]))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run that tells three colours apart."""
    folder = tmp_path_factory.mktemp('colours')
    data = save_colours(folder / 'data')
    assert train(data, folder / 'run')['top1'] == 1
    return folder / 'run'


@pytest.fixture
def colours(tmp_path):
    return save_colours(tmp_path / 'data')


def pack(data, split):
    """Turn the folder of a split into a tar file."""
    shutil.make_archive(str(data / split), 'tar', data / split)
    shutil.rmtree(data / split)


def test_a_subset_of_the_classes_is_evaluated_as_what_it_is(trained, colours, tmp_path):
    spoil(colours / 'validation', 'a class less')
    metrics = evaluate(trained, colours, '--output', str(tmp_path / 'out'))
    assert (metrics['top1'], metrics['images']) == (1, 32)
    rows = read_table(tmp_path / 'out' / 'classes.csv')
    assert [(row['class'], row['images']) for row in rows] == [('blue', '0'), ('green', '16'), ('red', '16')]


@pytest.mark.parametrize('options', [(), ('--val-share', '0.25'), ('--num-classes', '1')])
def test_a_training_with_one_class_is_refused(colours, tmp_path, options):
    data = colours / 'train' if options[:1] == ('--val-share',) else colours
    for folder in (*colours.glob('*/green'), *colours.glob('*/red')):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"only one class, 'blue', .*; put the pictures of each class into a folder"):
        train(data, tmp_path / 'run', *options)


@pytest.mark.parametrize(('kind', 'said'), [
    ('a class renamed', "'amber'.*; the model knows blue, green, red.*--class-map"), ('a class more', "'yellow'"),
    ('a class misspelt', r"'gren' \(did you mean 'green'\?\)")])
def test_a_class_that_the_model_does_not_know_is_refused_by_name(trained, colours, kind, said):
    spoil(colours / 'validation', kind)
    with pytest.raises(ValueError, match=rf'the split validation has classes that the model does not know: {said}'):
        evaluate(trained, colours)


def test_a_class_map_gives_renamed_classes_their_indices(trained, colours, tmp_path):
    spoil(colours / 'validation', 'a class renamed')
    (tmp_path / 'map.txt').write_text('amber\ngreen\nred\n')
    assert evaluate(trained, colours, '--class-map', str(tmp_path / 'map.txt'))['top1'] == 1


@pytest.mark.parametrize('lines', ['red\ngreen\nblue\n', 'blue\nred\n'])
def test_a_class_map_that_contradicts_the_network_is_refused(trained, colours, tmp_path, lines):
    (tmp_path / 'map.txt').write_text(lines)
    with pytest.raises(ValueError, match=r"map\.txt gives the class 'red' the index [01], and the network has it at 2"):
        evaluate(trained, colours, '--class-map', str(tmp_path / 'map.txt'))


def test_a_class_map_knows_better_than_a_guess(tmp_path):
    from timm.data import ImageNetInfo
    model, names = timm.create_model('test_resnet'), ImageNetInfo('imagenet-1k').label_names()
    (tmp_path / 'map.txt').write_text('\n'.join(names[::-1]))
    for class_map, known in (('', names), (str(tmp_path / 'map.txt'), None)):
        options = Namespace(class_map=class_map, label_names=None)
        assert label_names(options, model, names) == known


@pytest.mark.parametrize('arguments', [(), ('--class-map', 'map.txt')])
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_an_accent_is_the_same_in_either_spelling(colours, tmp_path, monkeypatch, arguments, packed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'map.txt').write_text('blue\ngr\u00fcn\nred\n', encoding='utf-8')
    spoil(colours / 'train', 'a class with an accent of its own')
    spoil(colours / 'validation', 'a class with an accent')
    if packed:
        pack(colours, 'train')
        pack(colours, 'validation')
    assert train(colours, tmp_path / 'run', *arguments)['top1'] == 1


def test_a_class_map_for_torchvision_is_refused(tmp_path):
    (tmp_path / 'map.txt').write_text('cat\ndog\n')
    given = parse_options(['--dataset', 'torch/cifar10', '--data-dir', str(tmp_path), '--class-map',
                           str(tmp_path / 'map.txt')])
    with pytest.raises(ValueError, match='--class-map has no effect on torch/cifar10'):
        open_split(given, 'train', training=True)


def test_a_network_for_imagenet_knows_its_folders_by_their_names(tmp_path):
    from timm.data import ImageNetInfo
    data = save_colours(tmp_path / 'data', train=0, val=1)
    names = ImageNetInfo('imagenet-1k').label_names()
    for colour, index in zip(COLOURS, (3, 500, 999), strict=True):
        (data / 'validation' / colour).rename(data / 'validation' / names[index])
    evaluate_classifier(parse_evaluation(['--model', 'test_resnet', '--data-dir', str(data), '--img-size', '32',
                                          '--workers', '0', '--output', str(tmp_path)]))
    rows = read_table(tmp_path / 'classes.csv')
    assert [i for i, row in enumerate(rows) if row['images'] == '1'] == [3, 500, 999]
    assert rows[3]['class'] == names[3]


def test_a_class_without_a_validation_picture_is_fine(colours, tmp_path):
    spoil(colours / 'validation', 'a class less')
    assert train(colours, tmp_path / 'run')['top1'] == 1


def test_another_class_in_validation_is_refused_with_the_split(colours, tmp_path):
    spoil(colours / 'validation', 'a class misspelt')
    with pytest.raises(ValueError, match=r"split validation has classes .*: 'gren' \(did you mean 'green'\?\)"):
        train(colours, tmp_path / 'run')


@pytest.mark.parametrize(('kind', 'said'), [
    ('flat', 'holds 48 pictures and no folders of classes; put'),
    ('a stray picture', r'stray\.png lies beside the folders of the classes in .*validation')])
def test_a_picture_without_a_class_is_refused(trained, colours, kind, said):
    spoil(colours / 'validation', kind)
    with pytest.raises(ValueError, match=said):
        evaluate(trained, colours)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # timm's reader leaves the file open
def test_one_tar_file_for_training_and_validation_is_refused(colours, tmp_path):
    shutil.make_archive(str(tmp_path / 'all'), 'tar', colours / 'train')
    with pytest.raises(ValueError, match=r'all\.tar is one file, so that .*; unpack it and give --val-share'):
        train(tmp_path / 'all.tar', tmp_path / 'run')


def test_training_and_validation_on_the_same_images_are_refused(colours, tmp_path):
    with pytest.raises(ValueError, match='has no folders or tar files named train and validation, so that the same'):
        train(colours / 'train', tmp_path / 'run')
    assert evaluate_classifier(parse_evaluation(  # the folder of one split is enough for an evaluation
        ['--model', 'test_resnet', '--num-classes', '3', '--data-dir', str(colours / 'train'), '--img-size', '32',
         '--workers', '0']))['images'] == 48
    train(colours, tmp_path / 'run', '--train-split', 'train', '--val-split', 'train', '--epochs', '1')


@pytest.mark.parametrize('kind', [name for name in FOLDERS if ' as ' in name])
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # timm's reader leaves its tar file open
def test_every_format_that_pillow_reads_is_used(trained, colours, kind, packed):
    spoil(colours / 'validation', kind)
    if packed:
        shutil.make_archive(str(colours / 'validation'), 'tar', colours / 'validation')
    metrics = evaluate(trained, colours)
    assert (metrics['images'], metrics['top1']) == (48, 1)


@pytest.mark.parametrize('kind', ['checkpoints of a notebook', 'an archive of macOS', 'resource forks'])
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_hidden_entries_are_passed_over(trained, colours, caplog, kind, packed):
    spoil(colours / 'validation', kind)
    if packed:
        subprocess.run(['tar', '-cf', '../validation.tar', '.'], cwd=colours / 'validation', check=True)
    caplog.set_level('INFO')
    metrics = evaluate(trained, colours)
    assert (metrics['images'], metrics['top1']) == (48, 1)
    left = '; left out: 1 hidden entry' if packed else '48 pictures of 3 classes; left out: 1 hidden entry ('
    assert caplog.text.count(left) == 1


def test_what_is_left_out_is_counted_by_reason(colours, caplog):
    caplog.set_level('INFO')
    for kind in ('other files', 'checkpoints of a notebook', 'a class emptied'):
        spoil(colours / 'train', kind)
    assert class_names(open_split(parse_options(['--data-dir', str(colours)]), 'train', training=True)) == [
        'blue', 'red']
    assert ('left out: 1 hidden entry (.ipynb_checkpoints), 3 files that are no pictures by their ending '
            '(.csv, .txt), 1 folder without a picture (green)') in caplog.text


def test_an_empty_folder_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / 'red').mkdir()
    (tmp_path / 'red' / 'a.txt').touch()
    with pytest.raises(ValueError, match=r'there are no images in .*; left out: 1 file that is .* \(\.txt\)'):
        read_folder(str(tmp_path), None)


@pytest.mark.parametrize(('lines', 'said'), [
    ('red\ngren\nblue', r"no class 'green' \(did you mean 'gren'\?\) of .*train(.tar)?, which has no folder 'gren';"),
    ('Red\nGreen\nBlue', 'has no class'), ('red\nred\nblue', "has 'red' on more than one line")])
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_class_map_that_does_not_fit_the_folders_is_refused(colours, tmp_path, lines, said, packed):
    (tmp_path / 'map.txt').write_text(lines)
    if packed:
        pack(colours, 'train')
    with pytest.raises(ValueError, match=f'--class-map .*{said}'):
        train(colours, tmp_path / 'run', '--class-map', str(tmp_path / 'map.txt'))


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_class_map_orders_classes_and_chooses_some_of_them(colours, tmp_path, caplog, packed):
    if packed:
        pack(colours, 'train')
    (tmp_path / 'map.txt').write_text('\ufeffred\nblue\n\n', encoding='utf-8')
    options = parse_options(['--data-dir', str(colours), '--class-map', str(tmp_path / 'map.txt')])
    data = open_split(options, 'train', training=True)
    assert (class_names(data), len(data)) == (['red', 'blue'], 32)
    assert '16 pictures of classes that are not in --class-map (green)' in caplog.text
    assert [int(data[i][1]) for i in range(32)].count(0) == 16


def test_classes_that_are_called_by_numbers_are_not_those_whose_names_are_these_numbers(tmp_path):
    for name in ('2', '3'):
        (tmp_path / 'validation' / name).mkdir(parents=True)
        (tmp_path / 'validation' / name / 'a.png').touch()
    names = names_of_all(['1', '2', '3'], Namespace(num_classes=5))
    assert names == ['1', '2', '3', '(3)', '4']
    for known in (names, ['1', '2', '3', '3', '4']):  # earlier versions called two classes '3'
        data = open_split(parse_options(['--data-dir', str(tmp_path)]), 'validation', training=False)
        label_by_name(data, known, 'validation')
        assert [data.target_transform(target) for _, target in data.reader.samples] == [1, 2]
    assert class_names(Namespace(class_to_idx={'0': 1, 'b': 3})) == ['(0)', '0', '2', 'b']


def test_saved_names_with_gaps_are_those_of_their_numbers():
    def saved(names):
        return saved_class_names(Namespace(pretrained_cfg={'label_names': names}))
    assert saved({'2': 'c', '0': 'a', '10': 'k'}) == ['a', '1', 'c', *'3456789', 'k']
    assert saved({1: 'a', 2: 'b'}) == ['0', 'a', 'b']
    assert saved(['a', 'b']) == ['a', 'b']
    assert saved(None) == saved({}) == []


def test_names_that_differ_in_case_alone_have_one_order(tmp_path):
    for name in ('a', 'A', 'b', 'B'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '1.png').touch()
    assert list(read_folder(str(tmp_path), None).class_to_idx) == ['A', 'a', 'B', 'b']


@pytest.mark.parametrize(('kind', 'said'), [
    ('a class in two cases', "'Red' and 'red' differ only in letter case or blanks"),
    ('a class with a blank', "'red' and 'red ' differ only in letter case or blanks"),
    ('a folder of a year in each class', "the class '2020' is made of 3 folders, blue/2020, green/2020, red/2020"),
    ('a folder in a class', "the class 'more' lies in the folder of the class 'red'"),
    ('a link to nowhere', 'left out: 1 link to nothing (pink)'),
    ('a link to the folder above', 'loop links to a folder that it lies in, and is not followed'),
    ('two links that lead to one another', 'red links to a folder that it lies in, and is not followed'),
    ('a link to another class', "the classes 'pink' and 'red' are the same folder")])
def test_folders_that_are_probably_no_classes_are_warned_of(colours, caplog, kind, said):
    spoil(colours / 'train', kind)
    reader = read_folder(str(colours / 'train'), None)
    assert said in ''.join(record.getMessage() for record in caplog.records if record.levelname == 'WARNING')
    if 'above' in kind:
        assert len(reader.samples) == 48


def test_folders_of_splits_that_are_taken_for_classes_are_warned_of(tmp_path, caplog):
    for name in ('train', 'Val'):
        (tmp_path / 'images' / name).mkdir(parents=True)
        (tmp_path / 'images' / name / '1.png').touch()
    read_folder(str(tmp_path), None)
    assert "the classes 'train' and 'Val' have the names of splits; the class of a picture is" in caplog.text
    caplog.clear()
    (tmp_path / 'images' / 'plane').mkdir()
    (tmp_path / 'images' / 'plane' / '1.png').touch()
    read_folder(str(tmp_path), None)
    assert 'names of splits' not in caplog.text


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root reads every folder')
def test_a_folder_that_may_not_be_read_is_refused(colours):
    (colours / 'train' / 'red').chmod(0)
    with pytest.raises(PermissionError, match='red'):
        read_folder(str(colours / 'train'), None)


@pytest.mark.parametrize(('name', 'content', 'said'), [
    ('map.txt', b'red\n\nblue\ngreen\n', 'has nothing on line 2'), ('map.txt', b'\n', 'is empty'),
    ('map.csv', b'red,0\nblue,1\ngreen,2\n', r'is neither a text file, \.txt, with a name on each line'),
    ('map.txt', 'red\nblue\ngreen'.encode('utf-16'), 'is not text in UTF-8'),
    ('map.pkl', pickle.dumps({'red': -1, 'blue': 0, 'green': 1}), "gives 'red' the index -1"),
    ('map.pkl', pickle.dumps({'red': '0', 'blue': '1', 'green': '2'}), "gives 'red' the index '0'")])
def test_a_class_map_that_gives_no_indices_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f'--class-map .*{said}'):
        read_class_map(str(tmp_path / name))


def test_the_variants_of_a_picture_are_on_one_side_of_a_share():
    samples = [(f'/data/{label}/leaf{i}_jpg.rf.{key}.jpg', label)
               for label in range(2) for i in range(5) for key in ('0f3a', '9cd2', 'Ze77')]
    inside = Counter(path.partition('.rf.')[0] for path, _ in compress(samples, share_of(samples, '/data', 0.4, 0)))
    assert sorted(inside.values()) == [3] * 4
    with pytest.raises(ValueError, match=r'leaf0_jpg\.rf\.0f3a\.jpg is the only picture of its class'):
        share_of(samples[:3], '/data', 0.4, 0)


def test_a_share_takes_names_that_are_not_utf8():
    samples = [(f'/data/caf\udce9/{i}.jpg', 0) for i in range(10)]
    assert sum(share_of(samples, '/data', 0.2, 0)) == 2


def test_a_share_of_a_tar_file_or_of_a_data_set_is_refused(colours, tmp_path):
    shutil.make_archive(str(tmp_path / 'colours'), 'tar', colours / 'train')
    with pytest.raises(ValueError, match=r'colours\.tar is a file; give --val-share 0, or unpack the file'):
        train(tmp_path / 'colours.tar', tmp_path / 'run', '--val-share', '0.2')
    with pytest.raises(ValueError, match='--dataset torch/image_folder names its splits by --train-split and --val-s'):
        train(colours, tmp_path / 'run', '--val-share', '0.2', '--dataset', 'torch/image_folder')


@pytest.mark.parametrize('linked', [False, True])
def test_validation_pictures_that_are_trained_on_are_logged(colours, tmp_path, caplog, linked):
    shutil.rmtree(colours / 'validation')
    if linked:
        (colours / 'validation').symlink_to('train')
    else:
        shutil.copytree(colours / 'train', colours / 'validation')
    train(colours, tmp_path / 'run', '--epochs', '1')
    assert '48 of 48 validation pictures that were compared are also trained on' in caplog.text


@pytest.mark.parametrize(('kind', 'said'), [
    ('a class renamed', r"the data lacks 'blue', and has 'amber' instead"),
    ('a class misspelt', r"the data lacks 'green' \(did you mean 'gren'\?\), and has 'gren' instead"),
    ('another order', 'the data has the same classes in another order')])
def test_a_run_is_not_continued_on_other_classes(colours, tmp_path, kind, said):
    train(colours, tmp_path / 'run', '--epochs', '1')
    order = []
    if kind == 'another order':
        (tmp_path / 'map.txt').write_text('red\ngreen\nblue\n')
        order = ['--class-map', str(tmp_path / 'map.txt')]
    else:
        for split in ('train', 'validation'):
            spoil(colours / split, kind)
    state = read_checkpoint(tmp_path / 'run' / 'last.pth.tar')
    if order:  # the same path, whose content has changed
        state['args'].class_map = order[1]
        torch.save(state, tmp_path / 'run' / 'last.pth.tar')
    with pytest.raises(ValueError, match=rf'last\.pth\.tar is of a run with other classes: {said}'):
        train(colours, tmp_path / 'run', '--epochs', '2', '--resume', 'auto', *order)


def test_a_run_is_not_continued_on_other_data_with_the_same_classes(colours, tmp_path):
    train(colours, tmp_path / 'run', '--epochs', '1')
    next((colours / 'train' / 'red').iterdir()).unlink()
    with pytest.raises(ValueError, match=r'last\.pth\.tar is of a run on 48 training images, and .* has 47'):
        train(colours, tmp_path / 'run', '--epochs', '2', '--resume', 'auto')


def test_other_validation_pictures_of_the_same_names_are_fine(colours, tmp_path, caplog):
    train(colours, tmp_path / 'run', '--epochs', '1')
    assert 'also trained on' not in caplog.text


@pytest.mark.parametrize(('split', 'twin'), [('train', 'train.tar'), ('validation', 'val')])
def test_two_sources_of_a_split_are_logged(colours, caplog, split, twin):
    if twin.endswith('.tar'):
        shutil.make_archive(str(colours / 'train'), 'tar', colours / 'train')
    else:
        shutil.copytree(colours / split, colours / twin)
    read = split_root(colours, split)
    assert f'the split {split} is read from {read}, and not from' in caplog.text
