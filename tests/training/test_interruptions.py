"""A run that is ended at any moment ends with the weights of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from digit_runs import TINY, equal, job, said, save_digits, summary, train, weights
from processes import finish, start

from timm_se_plugin.training import parse_options, train_classifier
from timm_se_plugin.training.images import Images
from timm_se_plugin.training.splits import open_split
from timm_se_plugin.training.termination import TerminatedError, Termination


@pytest.fixture(scope='module')
def undisturbed(digits, tmp_path_factory):
    """A whole run."""
    folder = tmp_path_factory.mktemp('undisturbed') / 'run'
    assert finish(start(train, *job(folder, *arguments(digits)))) == 0, said(folder)
    return folder


def arguments(digits):
    # Everything that has a state: averaged weights, mixing and erasing (randomness), momentum, a schedule by updates.
    return (
        '--data-dir', str(digits), '--epochs', '8', '--model-ema', '--model-ema-decay', '0.9', '--mixup', '0.2',
        '--reprob', '0.3', '--drop-path', '0.1', '--sched-on-updates', '--warmup-epochs', '1',
        '--recovery-interval', '2')


def done(folder):
    """Batches that a run has told of."""
    return said(folder).count('images/s')


def wait_for(condition, process):
    while process.is_alive() and not condition():
        time.sleep(0.002)


@pytest.mark.parametrize('workers', ['0', pytest.param('1', marks=pytest.mark.slow)])
def test_sigterm_to_every_process_saves_and_the_run_continues_to_the_same_weights(
        digits, undisturbed, tmp_path, workers):
    folder = tmp_path / 'run'
    process = start(train, *job(folder, *arguments(digits), '--workers', workers))
    wait_for(lambda: done(folder) >= 9, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert finish(process) == 0, said(folder)
    assert 'stopped by SIGTERM in epoch' in said(folder)
    assert finish(start(train, *job(folder, *arguments(digits), '--resume', 'auto'))) == 0
    assert 'resumed from' in said(folder)
    assert equal(weights(folder), weights(undisturbed))
    assert summary(folder) == summary(undisturbed)


def test_sigterm_while_a_picture_is_read_is_no_corrupt_picture(tmp_path):
    def interrupted(image):
        os.kill(os.getpid(), signal.SIGTERM)
        return image
    data = open_split(parse_options(['--data-dir', str(save_digits(tmp_path))]), 'train', training=True)
    images = Images(data, interrupted, lambda epoch: lambda image: image, 0, 'skip', keep=False, replace=True)
    with Termination() as termination:
        termination.at_once = True
        with pytest.raises(TerminatedError):
            images[0, 0, 0]


def test_a_command_that_sigterm_ends_does_not_claim_success(digits, tmp_path):
    words, _ = job(tmp_path / 'run', *arguments(digits), '--epochs', '1000')
    process = subprocess.Popen([sys.executable, '-m', 'timm_se_plugin', 'train', *words], stderr=subprocess.PIPE)
    while process.poll() is None and not (tmp_path / 'run' / 'last.pth.tar').exists():
        time.sleep(0.02)
    process.terminate()
    said = process.communicate(timeout=120)[1].decode()
    assert 'stopped by SIGTERM in epoch' in said
    assert process.returncode == 143


def test_sigkill_at_ten_random_moments_changes_nothing(digits, undisturbed, tmp_path):
    folder = tmp_path / 'run'
    generator = random.Random(0)
    for _ in range(10):
        process = start(train, *job(folder, *arguments(digits), '--resume', 'auto'))
        batches = done(folder) + generator.randint(0, 4)
        wait_for(lambda: done(folder) >= batches, process)  # noqa: B023  (waited for in this turn)
        time.sleep(generator.uniform(0, 0.05))  # about the time of a batch: in a step, a save or an evaluation
        assert process.exitcode is None, 'the run ended before it was killed'
        os.kill(process.pid, signal.SIGKILL)
        assert finish(process) == -signal.SIGKILL
    assert finish(start(train, *job(folder, *arguments(digits), '--resume', 'auto'))) == 0
    assert said(folder).count('resumed from') >= 5
    assert equal(weights(folder), weights(undisturbed))
    assert equal(weights(folder, ema=True), weights(undisturbed, ema=True))
    assert summary(folder) == summary(undisturbed)


def test_a_spoiled_last_checkpoint_is_passed_over(digits, undisturbed, tmp_path):
    folder = tmp_path / 'run'
    process = start(train, *job(folder, *arguments(digits)))
    wait_for(lambda: (folder / 'previous.pth.tar').exists(), process)
    os.kill(process.pid, signal.SIGTERM)
    finish(process)
    last = folder / 'last.pth.tar'
    last.write_bytes(last.read_bytes()[:-100])
    assert finish(start(train, *job(folder, *arguments(digits), '--resume', 'auto'))) == 0
    assert 'last.pth.tar is not a whole checkpoint; an older one is used' in said(folder)
    assert equal(weights(folder), weights(undisturbed))


def test_a_finished_run_says_that_nothing_is_left_to_train(digits, undisturbed):
    before = weights(undisturbed)
    assert 'nothing is left to train' not in said(undisturbed)
    assert finish(start(train, *job(undisturbed, *arguments(digits), '--resume', 'auto'))) == 0
    assert 'run has had all of its 8 epochs, and nothing is left to train' in said(undisturbed)
    assert equal(weights(undisturbed), before)


def test_an_interruption_says_how_to_continue(digits, tmp_path, monkeypatch, caplog):
    def interrupted(run, termination):
        raise KeyboardInterrupt
    caplog.set_level('INFO')
    monkeypatch.setattr('timm_se_plugin.training.loop.finish_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(parse_options([
            *TINY, '--epochs', '1', '--data-dir', str(digits), '--output', str(tmp_path), '--experiment', 'run']))
    assert 'interrupted in epoch 1; --resume auto continues the run from its last checkpoint' in caplog.text
