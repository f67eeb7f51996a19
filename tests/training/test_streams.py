import json
from argparse import Namespace

import pytest
import torch
from digit_runs import TINY, equal, weights

from timm_se_plugin.training import parse_options, train_classifier
from timm_se_plugin.training.checkpoint import read_checkpoint
from timm_se_plugin.training.continuing import continued
from timm_se_plugin.training.loaders import eval_loader, train_loader
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.run import Run
from timm_se_plugin.training.splits import open_split

CONFIG = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bilinear',
          'crop_pct': 1.0, 'crop_mode': 'center'}


@pytest.fixture(scope='module')
def shards(digits, tmp_path_factory):
    """The digits as WebDataset shards, four for training and two for validation."""
    wds = pytest.importorskip('webdataset', reason='streams need webdataset: the [train] extra')
    folder = tmp_path_factory.mktemp('shards')
    splits = {}
    for split, found, count in (('train', 'train', 4), ('validation', 'val', 2)):
        paths = sorted((digits / found).glob('*/*.png'))
        names, lengths = [], []
        for shard in range(count):
            names.append(f'{split}-{shard}.tar')
            mine = paths[shard::count]
            lengths.append(len(mine))
            with wds.TarWriter(str(folder / names[-1])) as tar:
                for path in mine:
                    tar.write({'__key__': path.stem, 'png': path.read_bytes(), 'cls': path.parent.name})
        splits[split] = {'name': split, 'num_samples': len(paths), 'filenames': names, 'shard_lengths': lengths}
    (folder / '_info.json').write_text(json.dumps({'splits': splits}))
    return folder


def options(shards, *arguments):
    return parse_options([
        '--dataset', 'wds/digits', '--data-dir', str(shards), '--num-classes', '10', '--batch-size', '16',
        '--workers', '2', *arguments])


def process(rank=0, world_size=1):
    return Process(torch.device('cpu'), rank, world_size)


def test_an_interrupted_epoch_of_a_stream_can_be_continued(shards):
    def batches(start):
        given = options(shards)
        loader = train_loader(given, open_split(given, 'train', training=True), CONFIG, process())
        return [(x.clone(), y) for x, y in loader(1, start)]
    whole, rest = batches(0), batches(3)
    assert len(whole) == len(rest) + 3 == 6
    for (x, y), (u, v) in zip(whole[3:], rest, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


@pytest.mark.parametrize(('arguments', 'said'), [
    (('--grad-accum-steps', '8'), '96 training images are fewer than the 128 of one update'),
    (('--aug-repeats', '3'), '--aug-repeats 3 is for data that is not read in order, and wds/digits is a stream')])
def test_what_a_stream_cannot_do_is_refused(shards, arguments, said):
    given = options(shards, *arguments)
    with pytest.raises(ValueError, match=said):
        train_loader(given, open_split(given, 'train', training=True), CONFIG, process())


@pytest.mark.parametrize('training', [True, False])
def test_a_class_that_the_network_does_not_have_is_named(shards, training):
    given = options(shards, '--num-classes', '7')
    data = open_split(given, 'train' if training else 'validation', training)
    with pytest.raises(ValueError, match=r'of the class [789], and --num-classes 7 stands for 0 to 6; give'):
        list((train_loader if training else eval_loader)(given, data, CONFIG, process())())


@pytest.mark.parametrize('world_size', [1, 2])
def test_every_image_of_a_stream_is_evaluated_once(shards, world_size):
    given = options(shards)
    seen = []
    for rank in range(world_size):
        loader = eval_loader(
            given, open_split(given, 'validation', training=False), CONFIG, process(rank, world_size))
        seen += [x.clone() for x, _ in loader()]
    pictures = torch.cat(seen).flatten(1)
    assert len(pictures) == len(pictures.unique(dim=0)) == 50


def test_a_run_on_a_stream_is_reproducible(shards, tmp_path):
    for name in ('first', 'second'):
        train_classifier(parse_options([
            *TINY, '--dataset', 'wds/digits', '--data-dir', str(shards), '--num-classes', '10', '--workers', '1',
            '--epochs', '1', '--output', str(tmp_path), '--experiment', name]))
    assert equal(weights(tmp_path / 'first'), weights(tmp_path / 'second'))
    given = options(shards, *TINY, '--workers', '2', '--epochs', '2')
    path = tmp_path / 'first' / 'last.pth.tar'
    state = {**read_checkpoint(path), 'args': Namespace(**{**vars(given), 'workers': 0})}
    assert continued(Namespace(**{**vars(given), 'workers': 1}), state, process(), path).workers == 1
    with pytest.raises(ValueError, match=r'workers=2 \(was 0; a stream is dealt out to the workers\)'):
        continued(given, state, process(), path)


@pytest.mark.parametrize(('source', 'lengths'), [
    ('hfds', ()),
    pytest.param('hfids', ('--train-num-samples', '96', '--val-num-samples', '50'), marks=pytest.mark.slow)])
def test_data_of_hugging_faces_library_trains_and_is_continued(digits, tmp_path, monkeypatch, caplog, source, lengths):
    caplog.set_level('INFO')
    datasets = pytest.importorskip('datasets', reason='hfds/ and hfids/ need datasets: the [train] extra')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)

    def train(name, *arguments):
        train_classifier(parse_options([
            *TINY, '--dataset', f'{source}/{digits}', '--data-dir', str(tmp_path / 'cache'), '--num-classes', '10',
            '--workers', '1', '--recovery-interval', '4', '--output', str(tmp_path), '--experiment', name,
            '--epochs', '1', *lengths, *arguments]))

    def save_and_stop(run):
        save(run)
        raise KeyboardInterrupt
    train('whole')
    save = Run.save
    with monkeypatch.context() as context:
        context.setattr(Run, 'save', save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train('part')
    train('part', '--resume', 'auto')
    assert 'resumed from' in caplog.text
    assert equal(weights(tmp_path / 'whole'), weights(tmp_path / 'part'))


@pytest.mark.parametrize(('source', 'lengths'), [
    ('hfds', ()), ('hfids', ('--train-num-samples', '96', '--val-num-samples', '50', '--num-classes', '10'))])
def test_columns_with_other_names_are_named_by_options(digits, tmp_path, monkeypatch, source, lengths):
    datasets = pytest.importorskip('datasets', reason='hfds/ and hfids/ need datasets: the [train] extra')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    features = datasets.Features({
        'img': datasets.Image(), 'fine_label': datasets.ClassLabel(names=[str(i) for i in range(10)]),
        'coarse_label': datasets.Value('int64')})
    for split, found in (('train', 'train'), ('validation', 'val')):
        paths = sorted((digits / found).glob('*/*.png'))
        labels = [int(path.parent.name) for path in paths]
        table = datasets.Dataset.from_dict(
            {'img': list(map(str, paths)), 'fine_label': labels, 'coarse_label': labels}, features=features)
        table.to_parquet(str(tmp_path / 'data' / f'{split}-00000-of-00001.parquet'))

    def train(*arguments):
        return train_classifier(parse_options([
            *TINY, '--dataset', f'{source}/{tmp_path / "data"}', '--data-dir', str(tmp_path / 'cache'), '--epochs', '1',
            '--output', str(tmp_path), '--experiment', 'run', *lengths, *arguments]))
    known = 'its columns are img, fine_label, coarse_label'
    with pytest.raises(ValueError, match=rf"no column 'image', which --input-key names; {known}"):
        train()
    with pytest.raises(ValueError, match=rf"no column 'label', which --target-key names; {known}"):
        train('--input-key', 'img')
    train('--input-key', 'img', '--target-key', 'fine_label')
    if source == 'hfds':  # a stream does not tell the names of the classes before it is read
        names = read_checkpoint(tmp_path / 'run' / 'last.pth.tar')['label_names']
        assert names == [str(i) for i in range(10)]


@pytest.mark.parametrize('source', ['hfds', 'hfids'])
def test_classes_that_are_text_ask_for_a_class_map(digits, tmp_path, monkeypatch, source):
    datasets = pytest.importorskip('datasets', reason='hfds/ and hfids/ need datasets: the [train] extra')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    pictures = sorted((digits / 'train').glob('*/*.png'))
    table = datasets.Dataset.from_dict(
        {'image': list(map(str, pictures)), 'label': [f'digit {path.parent.name}' for path in pictures]},
        features=datasets.Features({'image': datasets.Image(), 'label': datasets.Value('string')}))
    table.to_parquet(str(tmp_path / 'data' / 'train-00000-of-00001.parquet'))
    (tmp_path / 'classes.txt').write_text('\n'.join(f'digit {i}' for i in range(10)))
    given = ['--dataset', f'{source}/{tmp_path / "data"}', '--data-dir', str(tmp_path / 'cache'),
             '--train-num-samples', '96']
    with pytest.raises(ValueError, match=rf"the column 'label' of {source}/.* holds text .*; give .* by --class-map"):
        open_split(parse_options(given), 'train', training=True)
    mapped = parse_options([*given, '--class-map', str(tmp_path / 'classes.txt')])
    file, target = next(iter(open_split(mapped, 'train', training=True).reader))
    file.close()
    assert target in range(10)
    if source == 'hfds':
        (tmp_path / 'classes.txt').write_text('\n'.join(f'digit {i}' for i in range(9)))
        with pytest.raises(ValueError, match=r"has no class 'digit 9' \(did you mean .*\), which the column 'label'"):
            open_split(mapped, 'train', training=True)


def test_columns_are_not_for_folders_and_torchvision(digits):
    for dataset in '', 'torch/mnist':
        given = parse_options(['--dataset', dataset, '--data-dir', str(digits), '--input-key', 'img'])
        with pytest.raises(ValueError, match='--input-key and --target-key are for data sets with columns'):
            open_split(given, 'train', training=True)
