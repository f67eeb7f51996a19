"""A run continues with another number of processes, and to another number of epochs."""

import signal
import time
from argparse import Namespace

import pytest
import torch
from digit_runs import TINY, job, said, summary, train, weights
from processes import finish, start, start_group

from timm_se_plugin.files.tables import read_table
from timm_se_plugin.training import parse_options, train_classifier
from timm_se_plugin.training.checkpoint import read_checkpoint
from timm_se_plugin.training.continuing import checkpoint_of, continued
from timm_se_plugin.training.process import Process
from timm_se_plugin.training.records import RUN as RESULT

# A network without BatchNorm, whose statistics are those of one process's images; randomness in each image; and
# everything that has a state.
RUN = ('--model', 'test_resnet_plugin', '--model-kwargs', 'attn=se', 'norm_layer=groupnorm1', '--model-dtype',
       'float64', '--epochs', '3', '--reprob', '0.5', '--model-ema', '--model-ema-decay', '0.9', '--sched-on-updates',
       '--warmup-epochs', '1', '--recovery-interval', '1', '--resume', 'auto')


def begin(processes, folder, *arguments):
    this = job(folder, *arguments)
    return start_group(train, *processes * [this]) if processes > 1 else [start(train, *this)]


def run(processes, folder, *arguments):
    codes = [finish(process) for process in begin(processes, folder, *arguments)]
    assert codes == [0] * processes, said(folder)


def killed(processes, folder, *arguments):
    """Train some more batches than there were, and kill every process."""
    done, group = said(folder).count('images/s'), begin(processes, folder, *arguments)
    while said(folder).count('images/s') < done + 4 and all(process.is_alive() for process in group):
        time.sleep(0.002)
    for process in group:
        process.kill()
    codes = [finish(process) for process in group]
    assert codes[0] == -signal.SIGKILL, said(folder)
    assert all(codes)  # another process may end by itself when the first is gone


@pytest.fixture(scope='module')
def whole(digits, tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp('whole') / 'run'
    run(1, folder, *RUN, '--data-dir', str(digits))
    return folder


@pytest.mark.parametrize(('chain', 'batch'), [
    ((1, 4, 2), '16'), ((1, 2, 1), '16'), pytest.param((2, 1, 4), '8', marks=pytest.mark.slow), ((4, 1, 2), '4'),
    pytest.param((4, 2, 4), '4', marks=pytest.mark.slow)])
def test_killed_runs_continue_crosswise_to_the_same_weights(digits, tmp_path, whole, chain, batch):
    folder, arguments = tmp_path / 'run', (*RUN, '--data-dir', str(digits), '--batch-size', batch)
    for processes in chain[:-1]:
        killed(processes, folder, *arguments)
    run(chain[-1], folder, *arguments)
    assert said(folder).count('resumed from') == len(chain) - 1
    for ema in (False, True):
        found, expected = weights(folder, ema), weights(whole, ema)
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-9)
    for row, other in zip(summary(folder), summary(whole), strict=True):
        assert {key: float(row[key]) for key in other} == pytest.approx({k: float(v) for k, v in other.items()})


def test_accumulation_keeps_the_images_of_an_update(digits, tmp_path):
    folder, arguments = tmp_path / 'run', (*RUN, '--data-dir', str(digits), '--batch-size', '4')
    killed(4, folder, *arguments)
    run(1, folder, *arguments)
    assert 'batches of 4 images and 4 accumulation steps keep the 16 images of an update' in said(folder)
    position = read_checkpoint(folder / 'last.pth.tar')['position']
    assert (position['global_batch'], position['grad_accum_steps'], position['world_size']) == (16, 4, 1)
    run(1, folder, *arguments)  # the same command again
    assert finish(start(train, *job(folder, *arguments, '--batch-size', '8'))) == 1  # another command
    assert 'other options than these: batch_size=8 (was 4); give the earlier values, or begin another' in said(folder)


def test_images_that_the_processes_cannot_share_are_one_clear_error(digits, tmp_path):
    folder, arguments = tmp_path / 'run', (*RUN, '--data-dir', str(digits), '--batch-size', '15')
    killed(1, folder, *arguments)
    codes = [finish(process) for process in begin(2, folder, *arguments)]
    assert codes == [1, 1]
    assert ('has 15 images in an update, which 2 processes cannot share equally; continue the run with a number of '
            'processes that divides 15') in said(folder)


@pytest.mark.parametrize('updates', [(), ('--sched-on-updates',)])
def test_a_run_continues_to_more_epochs_with_the_schedule_of_the_new_length(digits, tmp_path, updates):
    data = ('--data-dir', str(digits), *updates)
    run(1, tmp_path / 'long', *data, '--epochs', '4')
    run(1, tmp_path / 'run', *data)
    run(1, tmp_path / 'run', *data, '--epochs', '4', '--resume', 'auto')
    assert 'is continued to 4 epochs instead of 2: from here on, the learning rate follows the schedule' in said(
        tmp_path / 'run')
    rates, expected = ([float(row['lr']) for row in read_table(tmp_path / name / 'summary.csv')]
                       for name in ('run', 'long'))
    assert len(rates) == 4
    assert rates[2:] == pytest.approx(expected[2:])
    assert read_checkpoint(tmp_path / 'run' / 'last.pth.tar')['args'].epochs == 4
    assert finish(start(train, *job(tmp_path / 'run', *data, '--epochs', '3', '--resume', 'auto'))) == 1
    assert 'has been trained for 4 epochs, more than --epochs 3; give --epochs 4 or more' in said(tmp_path / 'run')


def test_a_run_of_a_release_without_an_option_goes_on_as_it_began(digits, tmp_path):
    folder, arguments = tmp_path / 'run', ('--data-dir', str(digits))
    run(1, folder, *arguments)
    checkpoint = read_checkpoint(folder / 'last.pth.tar')
    del checkpoint['args'].exif_orientation, checkpoint['args'].attn_lr_scale
    del checkpoint['position']['global_batch'], checkpoint['position']['grad_accum_steps']
    torch.save(checkpoint, folder / 'last.pth.tar')
    run(1, folder, *arguments, '--epochs', '3', '--resume', 'auto')
    assert read_checkpoint(folder / 'last.pth.tar')['args'].exif_orientation is False


def test_the_args_of_a_run_and_a_moved_class_map_continue_it(digits, tmp_path):
    names = '\n'.join(map(str, range(10)))
    for name in ('before.txt', 'after.txt'):
        (tmp_path / name).write_text(names)
    train_classifier(parse_options([
        *TINY, '--model', 'test_resnet_plugin', '--model-kwargs', 'attn=sk', 'attn_kernels=(3,5)', '--epochs', '1',
        '--data-dir', str(digits), '--output', str(tmp_path), '--experiment', 'run', '--class-map',
        str(tmp_path / 'before.txt')]))
    again = ['--config', str(tmp_path / 'run' / 'args.yaml'), '--epochs', '2', '--resume', 'auto', '--class-map']
    train_classifier(parse_options([*again, str(tmp_path / 'after.txt')]))
    assert len(summary(tmp_path / 'run')) == 2
    (tmp_path / 'after.txt').write_text('\n'.join(map(str, reversed(range(10)))))
    with pytest.raises(ValueError, match='the data has the same classes in another order'):
        train_classifier(parse_options([*again, str(tmp_path / 'after.txt')]))


def test_a_run_is_not_overwritten_by_one_that_continues_from_elsewhere(tmp_path):
    first, second, new = (tmp_path / name for name in ('first', 'second', 'new'))
    for folder in (first, second):
        folder.mkdir()
        torch.save({'state_dict': {}}, folder / 'last.pth.tar')
    last = str(first / 'last.pth.tar')
    with pytest.raises(ValueError, match='second holds a run already, whose checkpoints would be overwritten by a run'):
        checkpoint_of(Namespace(resume=last), second)
    for folder in (first, new):
        assert checkpoint_of(Namespace(resume=last), folder)[0] == last


@pytest.mark.parametrize('moved', [True, False])
def test_a_run_without_its_best_checkpoint_keeps_the_best_of_the_epochs_to_come(digits, tmp_path, moved):
    arguments = ('--data-dir', str(digits), '--eval-metric', 'top1')
    run(1, tmp_path / 'run', *arguments)
    last = tmp_path / 'run' / 'last.pth.tar'
    state = read_checkpoint(last)
    torch.save({**state, 'best': 1.0}, last)  # no later epoch is better
    (tmp_path / 'run' / 'model_best.pth.tar').unlink()
    folder = tmp_path / ('new' if moved else 'run')
    run(1, folder, *arguments, '--epochs', '3', '--resume', str(last))
    assert read_checkpoint(folder / 'model_best.pth.tar')['epoch'] == 2


def continued_with(processes, *arguments):
    """The batch size and the accumulation steps with which other processes continue a run of three."""
    options = parse_options(['--batch-size', '20', '--cutmix', '1', *arguments])
    state = {'args': options, 'position': {'epoch': 1, 'world_size': 3, 'global_batch': 3 * options.batch_size}}
    found = continued(options, state, Process(torch.device('cpu'), world_size=processes), 'last.pth.tar')
    return found.batch_size, found.grad_accum_steps


def test_a_run_that_mixes_pairs_continues_with_even_batches():
    assert continued_with(2) == (10, 3)  # and not with two batches of 15
    assert continued_with(2, '--cutmix', '0') == (15, 2)
    with pytest.raises(ValueError, match='each of 4 processes 15, an odd number, and --mixup and --cutmix mix images'):
        continued_with(4)


def test_the_args_of_a_run_without_a_name_of_its_own_continue_it(digits, tmp_path):
    (tmp_path / 'mine.yaml').write_text('lr: 0.1\n')
    given = ['--config', str(tmp_path / 'mine.yaml'), *TINY, '--data-dir', str(digits), '--output', str(tmp_path)]
    first = train_classifier(parse_options([*given, '--epochs', '1']))
    folder, = tmp_path.glob('mine/*')
    again = train_classifier(parse_options(
        ['--config', str(folder / 'args.yaml'), '--epochs', '2', '--resume', 'auto']))
    assert len(summary(folder)) == 2
    names = {key: again[key] for key in RESULT if key != 'epochs'}  # which tell its row from those of other runs
    assert names == {key: first[key] for key in names}
    assert names['recipe'] == 'mine'
    assert 'lr=0.05' in names['options']
