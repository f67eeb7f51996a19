import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from digit_runs import TINY, equal, job, summary, train, weights
from processes import finish, start_group

from timm_se_plugin.training.checkpoint import read_checkpoint

TOOL = Path(__file__).parents[2] / 'tools' / 'train_classifier.py'
# A network without BatchNorm, whose statistics are those of one process's images.
FLAT = ('--model', 'test_resnet_plugin', '--model-kwargs', 'attn=se', 'norm_layer=groupnorm1',
        '--model-dtype', 'float64', '--epochs', '1')


def run(*jobs):
    """Train in as many processes as there are jobs; the first process's log."""
    processes = start_group(train, *jobs)
    assert [finish(process) for process in processes] == [0] * len(jobs), Path(jobs[0][1]).read_text(encoding='utf-8')
    return Path(jobs[0][1]).read_text(encoding='utf-8')


def test_two_processes_train_as_one_with_the_same_global_batch(digits, tmp_path):
    data = ('--data-dir', str(digits))
    run(job(tmp_path / 'one', *FLAT, *data))
    run(*2 * [job(tmp_path / 'two', *FLAT, *data, '--batch-size', '8')])
    one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-9)
    rows = [summary(tmp_path / name)[0] for name in ('one', 'two')]
    for key in rows[0]:  # evaluation on 25 + 25 images; and the loss of training
        assert float(rows[0][key]) == pytest.approx(float(rows[1][key]), rel=1e-6), key


@pytest.mark.slow
def test_statistics_of_both_processes_are_saved_before_and_after_the_evaluation(digits, tmp_path):
    # Of the first BatchNorm and a single step the mean of the means of two halves is that of the whole.
    arguments = ('--data-dir', str(digits), '--epochs', '1', '--model-ema', '--model-ema-decay', '0.5')
    run(job(tmp_path / 'one', *arguments, '--batch-size', '96'))
    run(*2 * [job(tmp_path / 'two', *arguments, '--batch-size', '48')])
    for name in ('previous.pth.tar', 'last.pth.tar'):
        one, two = (read_checkpoint(tmp_path / folder / name) for folder in ('one', 'two'))
        for key in ('state_dict', 'state_dict_ema'):
            mean, expected = (state[key]['conv1.1.running_mean'] for state in (two, one))
            torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_processes_that_find_different_checkpoints_are_refused(digits, tmp_path):
    arguments = ('--data-dir', str(digits), '--batch-size', '8', '--epochs', '1')
    run(*2 * [job(tmp_path / 'first' / 'run', *arguments)])
    # The second process looks into a folder of its own, as one on another machine would.
    jobs = [job(tmp_path / folder / 'run', *arguments, '--resume', 'auto') for folder in ('first', 'second')]
    assert [finish(process) for process in start_group(train, *jobs)] == [1, 1]
    assert 'the processes find different checkpoints in' in Path(jobs[1][1]).read_text(encoding='utf-8')


def torchrun(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(TOOL), *TINY,
         '--output', str(folder.parent), '--experiment', folder.name, *arguments],
        stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'})


@pytest.mark.slow
def test_two_processes_of_torchrun_are_ended_and_continue(digits, tmp_path):
    arguments = ('--data-dir', str(digits), '--batch-size', '8', '--epochs', '6', '--mixup', '0.2', '--model-ema',
                 '--model-ema-decay', '0.9', '--recovery-interval', '2')
    run(*2 * [job(tmp_path / 'whole', *arguments)])
    folder = tmp_path / 'run'
    process = torchrun(folder, *arguments)
    while process.poll() is None and not (folder / 'previous.pth.tar').exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert read_checkpoint(folder / 'last.pth.tar')['position']['epoch'] < 6
    process = torchrun(folder, *arguments, '--resume', 'auto')
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said[-3000:]
    assert equal(weights(folder), weights(tmp_path / 'whole'))
    assert equal(weights(folder, ema=True), weights(tmp_path / 'whole', ema=True))
    for resumed, whole in zip(summary(folder), summary(tmp_path / 'whole'), strict=True):
        assert all(float(resumed[key]) == pytest.approx(float(whole[key])) for key in whole)
