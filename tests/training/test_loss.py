"""Weights of the classes in the loss of a training."""

import logging
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from digit_runs import TINY, equal, job, train, train_in_pieces, weights
from processes import finish, start, start_group
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from timm_se_plugin.training import parse_options, train_classifier
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.run import Run


@pytest.fixture(scope='module')
def tail(tmp_path_factory):
    """Digits of which the first five have a sixth of the training images of the others."""
    from digit_runs import save_digits
    folder = save_digits(tmp_path_factory.mktemp('tail'), train=120, val=30)
    for digit in range(5):
        for path in sorted((folder / 'train' / str(digit)).iterdir())[2:]:
            path.unlink()
    return folder


def made(data, tmp_path, *arguments):
    return Run(parse_options([*TINY, '--data-dir', str(data), '--output', str(tmp_path), *arguments]),
               Process(torch.device('cpu')))


def counted(folder):
    return Counter(int(path.parent.name) for path in folder.glob('train/*/*.png'))


def test_inverse_frequencies_are_scikit_learns_balanced_weights_and_the_counts_are_told(tail, tmp_path, caplog):
    caplog.set_level(logging.INFO, 'timm_se_plugin')
    found = made(tail, tmp_path, '--class-weight', 'inv_freq').task.criterion.weight
    counts = counted(tail)
    expected = compute_class_weight('balanced', classes=np.arange(10), y=list(counts.elements()))
    torch.testing.assert_close(found, torch.from_numpy(expected).float())
    line, = [record.getMessage() for record in caplog.records if 'training images of each class' in record.getMessage()]
    assert all(f'{digit} {counts[digit]} (' in line for digit in range(10))


@pytest.mark.parametrize('loss', [(), ('--bce-loss',)])
def test_classes_that_the_data_lacks_have_a_weight_too(tail, tmp_path, loss):
    whole, more = (made(tail, tmp_path, '--class-weight', 'inv_freq', *loss, '--num-classes', classes)
                   for classes in ('10', '12'))
    logits, y = torch.randn(4, 12), torch.tensor([0, 3, 7, 9])
    assert more.task.criterion(logits, y).isfinite()
    if not loss:
        torch.testing.assert_close(more.task.criterion.weight[:10], whole.task.criterion.weight)


@pytest.mark.parametrize('mixes', [False, True])
def test_a_batch_is_averaged_over_its_images(tail, tmp_path, mixes):
    more = ('--mixup', '0.2') if mixes else ()
    run = made(tail, tmp_path, '--class-weight', 'effective_num', '--smoothing', '0.1', *more)
    x, y = torch.randn(6, 10), torch.tensor([0, 0, 1, 7, 8, 9])
    weight = run.task.criterion.weight
    targets = F.one_hot(y, 10).float()
    if mixes:
        targets = 0.7 * targets + 0.3 * targets.flip(0)
    smooth = targets if mixes else 0.9 * targets + 0.1 / 10
    expected = -(smooth * weight * x.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(run.task.criterion(x, targets if mixes else y), expected)
    assert weight[0] > 2 * weight[9]
    counts = counted(tail)
    assert sum(weight[i] * counts[i] for i in range(10)) == pytest.approx(counts.total())


def test_binary_cross_entropy_takes_timms_weights(tail, tmp_path):
    counts = counted(tail)
    found = made(tail, tmp_path, '--class-weight', 'neg_pos', '--bce-loss').task.criterion.pos_weight
    assert found.tolist() == pytest.approx([counts.total() / counts[i] - 1 for i in range(10)])


def test_images_are_counted_in_every_source_but_streams(tail, tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets', reason='hfds/ and hfids/ need datasets: the [train] extra')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    for split in ('train', 'val'):
        shutil.make_archive(str(tmp_path / 'tars' / split), 'tar', tail / split)
    arguments = ('--class-weight', 'inv_freq', '--data-dir', str(tmp_path / 'cache'), '--num-classes', '10')
    expected = made(tail, tmp_path, *arguments[:2]).task.criterion.weight
    for more in (('--data-dir', str(tmp_path / 'tars')), ('--dataset', f'hfds/{tail}')):
        assert torch.equal(made(tail, tmp_path, *arguments, *more).task.criterion.weight, expected)
    with pytest.raises(ValueError, match='which is not known for this data before it is read; leave out'):
        made(tail, tmp_path, *arguments, '--dataset', f'hfids/{tail}', '--train-num-samples', '70', '--val-num-samples',
             '30')


@pytest.mark.parametrize(('arguments', 'said'), [
    (('--class-weight', 'neg_pos'), '--class-weight neg_pos is for binary cross-entropy; give --bce-loss .* inv_freq')])
def test_weights_that_the_loss_does_not_take_are_refused(tail, tmp_path, arguments, said):
    with pytest.raises(ValueError, match=said):
        made(tail, tmp_path, *arguments)


def test_a_weighted_run_is_the_same_when_it_is_resumed(tail, tmp_path):
    arguments = ('--data-dir', str(tail), '--output', str(tmp_path), '--class-weight', 'inv_freq', '--mixup', '0.2')
    train_classifier(parse_options([*TINY, *arguments, '--recovery-interval', '2', '--experiment', 'whole']))
    train_in_pieces(*arguments, '--experiment', 'part')
    assert equal(weights(tmp_path / 'part'), weights(tmp_path / 'whole'))
    train_classifier(parse_options([*TINY, *arguments[:4], *arguments[6:], '--experiment', 'plain']))
    assert not equal(weights(tmp_path / 'plain'), weights(tmp_path / 'whole'))


@pytest.mark.slow
def test_two_processes_and_accumulated_batches_weigh_as_one(tail, tmp_path):
    flat = ('--model', 'test_resnet_plugin', '--model-kwargs', 'attn=se', 'norm_layer=groupnorm1', '--model-dtype',
            'float64', '--epochs', '1', '--data-dir', str(tail), '--class-weight', 'inv_freq')
    two = job(tmp_path / 'two', *flat, '--batch-size', '4', '--grad-accum-steps', '2')
    processes = [start(train, *job(tmp_path / 'one', *flat)), *start_group(train, two, two)]
    assert [finish(process) for process in processes] == [0, 0, 0]
    one = weights(tmp_path / 'one')
    for key, value in weights(tmp_path / 'two').items():
        torch.testing.assert_close(value, one[key], rtol=1e-9, atol=1e-9)
