import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from digit_runs import TINY, equal, summary, weights

from timm_se_plugin.training.checkpoint import read_checkpoint

TOOL = Path(__file__).parents[2] / 'tools' / 'train_classifier.py'
# A network without BatchNorm, whose statistics are those of one process's images.
FLAT = ('--model', 'resnet10t_plugin', '--model-kwargs', 'attn=se', 'norm_layer=groupnorm1', '--model-dtype', 'float64',
        '--epochs', '1')


def command(processes, folder, *arguments):
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}'] \
        if processes > 1 else [sys.executable]
    return [*launcher, str(TOOL), *TINY, '--output', str(folder.parent), '--experiment', folder.name, *arguments]


def environment():
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}


def run(processes, folder, *arguments):
    done = subprocess.run(
        command(processes, folder, *arguments), capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_two_processes_train_as_one_with_the_same_global_batch(digits, tmp_path):
    data = ('--data-dir', str(digits))
    run(1, tmp_path / 'one', *FLAT, *data)
    run(2, tmp_path / 'two', *FLAT, *data, '--batch-size', '8')
    one, two = weights(tmp_path / 'one'), weights(tmp_path / 'two')
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-9, atol=1e-9)
    rows = [summary(tmp_path / name)[0] for name in ('one', 'two')]
    for key in rows[0]:  # evaluation on 25 + 25 images; and the loss of training
        assert float(rows[0][key]) == pytest.approx(float(rows[1][key]), rel=1e-6), key


def test_statistics_of_both_processes_are_saved_before_and_after_the_evaluation(digits, tmp_path):
    # Of the first BatchNorm and a single step the mean of the means of two halves is that of the whole.
    arguments = ('--data-dir', str(digits), '--epochs', '1', '--model-ema', '--model-ema-decay', '0.5')
    run(1, tmp_path / 'one', *arguments, '--batch-size', '96')
    run(2, tmp_path / 'two', *arguments, '--batch-size', '48')
    for name in ('previous.pth.tar', 'last.pth.tar'):
        one, two = (read_checkpoint(tmp_path / folder / name) for folder in ('one', 'two'))
        for key in ('state_dict', 'state_dict_ema'):
            mean, expected = (state[key]['conv1.1.running_mean'] for state in (two, one))
            torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)


def test_processes_that_stand_at_different_places_are_refused(digits, tmp_path):
    arguments = ('--data-dir', str(digits), '--batch-size', '8', '--epochs', '1')
    run(2, tmp_path / '0' / 'run', *arguments)
    # The second process looks into a folder of its own, as one on another machine would.
    program = ('import os, runpy, sys; sys.argv += ["--output", sys.argv.pop(1) + "/" + os.environ["RANK"]]; '
               f'runpy.run_path({str(TOOL)!r}, run_name="__main__")')
    tool = tmp_path / 'tool.py'
    tool.write_text(program)
    line = command(2, tmp_path / 'run', *arguments, '--resume', 'auto')
    at = line.index(str(TOOL))
    done = subprocess.run([*line[:at], str(tool), str(tmp_path), *line[at + 1:]], capture_output=True, text=True,
                          timeout=240, env=environment())
    assert done.returncode
    assert 'the processes find different checkpoints in' in done.stderr


@pytest.mark.slow
def test_two_processes_are_ended_and_continue(digits, tmp_path):
    arguments = ('--data-dir', str(digits), '--batch-size', '8', '--epochs', '6', '--mixup', '0.2')
    run(2, tmp_path / 'whole', *arguments)
    folder = tmp_path / 'run'
    process = subprocess.Popen(
        command(2, folder, *arguments), stderr=subprocess.PIPE, text=True, env=environment())
    while process.poll() is None and not (folder / 'previous.pth.tar').exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert read_checkpoint(folder / 'last.pth.tar')['position']['epoch'] < 6
    run(2, folder, *arguments, '--resume', 'auto')
    assert equal(weights(folder), weights(tmp_path / 'whole'))
    for mine, theirs in zip(summary(folder), summary(tmp_path / 'whole'), strict=True):
        assert all(float(mine[key]) == pytest.approx(float(theirs[key])) for key in theirs)
