"""The command for a borrowed GPU, rehearsed on the CPU."""

import os
import time

import pytest
import torch

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.files.tables import read_table
from timm_se_plugin.measuring import gpu_run
from timm_se_plugin.measuring.benchmark import Case


def test_the_table_has_every_network_mode_layout_type_and_batch_and_the_most_telling_first():
    cases = list(gpu_run.cases())
    assert len(set(cases)) == len(cases) == 3 * 2 * 2 * 3 * 4 * 2
    assert cases[0] == Case(mode='train', batch=128, layout='channels_last', dtype='float16')


@pytest.mark.parametrize(('minutes', 'measured'), [
    (1e-6, 0), pytest.param(10, 1, marks=pytest.mark.slow)])
def test_what_has_finished_is_kept(minutes, measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_run, 'cases', lambda: [Case('resnet18', batch=1, mode='train')])
    gpu_run.run('cpu', minutes, tmp_path, rounds=2)
    rows = read_table(tmp_path / 'speed-cpu.csv')
    assert [row['variant'] for row in rows] == measured * ['plain', 'plain fused', 'timm', 'unfused', 'fused']
    assert ('0 of 1 cases measured before the time ran out' in capsys.readouterr().out) == (not measured)
    if measured:
        profile = read_table(tmp_path / 'profile-cpu.csv')
        assert {row['variant'] for row in profile} == {'plain', 'plain fused', 'timm', 'fused'}
        assert any('convolution' in row['kernel'] for row in profile)


HANGING = """
import subprocess, sys, time

def test_hangs():
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    open({path!r}, 'w').write(str(child.pid))
    time.sleep(600)
"""


def test_a_test_that_hangs_ends_and_leaves_no_process(tmp_path, capfd):
    (tmp_path / 'tests' / 'gpu').mkdir(parents=True)
    pid = tmp_path / 'pid'
    (tmp_path / 'tests' / 'gpu' / 'test_hanging.py').write_text(HANGING.format(path=str(pid)))
    code = gpu_run._tests('cpu', tmp_path / 'tests', 40)
    assert code == 1
    assert 'FAILED' in capfd.readouterr().out
    for _ in range(100):  # the killed process is reaped by init
        if not os.path.exists(f'/proc/{pid.read_text()}'):
            return
        time.sleep(0.1)
    with open(f'/proc/{pid.read_text()}/stat', encoding='utf-8') as file:
        assert file.read().rpartition(')')[2].split()[0] == 'Z'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_machine_without_the_device_and_too_few_rounds_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match='--device cuda needs CUDA'):
        gpu_run.run('cuda', 1, tmp_path)
    with pytest.raises(ValueError, match='rounds=1 is too few'):
        gpu_run.run('cpu', 1, tmp_path, rounds=1)
