"""The command for a borrowed GPU, rehearsed on the CPU."""

import os
import runpy
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.files.tables import read_table, write_table
from timm_se_plugin.measuring import gpu_run
from timm_se_plugin.measuring.benchmark import Case


def test_the_table_has_every_network_mode_layout_type_and_batch_and_the_most_telling_first():
    cases = gpu_run.cases()
    assert len(set(cases)) == len(cases) == 3 * 2 * 2 * 3 * 4 * 2
    assert cases[0] == Case(mode='train', batch=128, layout='channels_last', dtype='float16')
    assert [i for i, case in enumerate(cases) if case.compiled][:3] == [18, 19, 146]


def test_what_an_earlier_run_has_measured_comes_last(tmp_path, monkeypatch):
    chosen = [Case(base, batch=1) for base in ('resnet18', 'resnet34', 'resnet50')]
    measured = []

    def measure(case, *args, **kwargs):
        measured.append(case.base)
        return [{**asdict(case), 'variant': 'plain', 'milliseconds': 1, 'ratio': 1}]

    monkeypatch.setattr(gpu_run, 'cases', lambda: chosen)
    monkeypatch.setattr(gpu_run, 'measure', measure)
    monkeypatch.setattr(gpu_run, '_profile', lambda case, device, variant: [
        {**asdict(case), 'variant': variant, 'kernel': 'none'}])
    write_table(tmp_path / 'speed-cpu.csv', measure(replace(chosen[1], batch=2, height=32, width=32)))
    measured.clear()
    assert gpu_run.run('cpu', 1, tmp_path, rounds=2) == []
    assert measured == ['resnet18', 'resnet50', 'resnet34']
    chosen.insert(0, Case('resnet26', batch=1))
    gpu_run.run('cpu', 1, tmp_path, rounds=2)
    assert [row['base'] for row in read_table(tmp_path / 'profile-cpu.csv')][::4] == ['resnet18', 'resnet26']


def test_a_table_without_a_column_for_each_option_is_added_to(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, 'cases', lambda: [])
    (tmp_path / 'speed-cpu.csv').write_text('base,mode\nresnet50,train\n')
    assert gpu_run.run('cpu', 1, tmp_path, rounds=2) == []


@pytest.mark.parametrize(('minutes', 'measured'), [
    (1e-6, 0), pytest.param(10, 1, marks=pytest.mark.slow)])
def test_what_has_finished_is_kept(minutes, measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_run, 'cases', lambda: [Case('resnet18', batch=1, mode='train')])
    gpu_run.run('cpu', minutes, tmp_path, rounds=2)
    rows = read_table(tmp_path / 'speed-cpu.csv')
    assert [row['variant'] for row in rows] == measured * ['plain', 'plain fused', 'timm', 'unfused', 'fused']
    assert ('the time was too short for 1 of 1 cases, which' in capsys.readouterr().out) == (not measured)
    if measured:
        profile = read_table(tmp_path / 'profile-cpu.csv')
        assert {row['variant'] for row in profile} == {'plain', 'plain fused', 'timm', 'fused'}
        assert any('convolution' in row['kernel'] for row in profile)
        assert {(row['base'], row['dtype'], row['torch']) for row in profile} == {
            ('resnet18', 'float32', torch.__version__)}


@pytest.mark.parametrize(('test', 'cases', 'said', 'status'), [
    ('assert False', [Case('resnetfoo', batch=1)], 'failed: tests: exit code 1; case 1', 1),
    ('pass', [], 'nothing failed', 0)])
def test_what_fails_is_said_in_the_last_line_and_by_the_exit_status(
        test, cases, said, status, tmp_path, monkeypatch, capsys):
    (tmp_path / 'tests' / 'gpu').mkdir(parents=True)
    (tmp_path / 'tests' / 'gpu' / 'test_one.py').write_text(f'def test_one(): {test}')
    monkeypatch.setattr(gpu_run, 'cases', lambda: cases)
    monkeypatch.setattr(sys, 'argv', ['run_on_gpu.py', '--device', 'cpu', '--output', str(tmp_path)])
    main = runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'run_on_gpu.py'))['main']
    monkeypatch.setitem(main.__globals__, '__file__', str(tmp_path / 'tools' / 'run_on_gpu.py'))
    assert main() == status
    assert capsys.readouterr().out.splitlines()[-1] == said


@pytest.mark.slow
def test_a_case_that_leaves_the_process_without_the_gpu_leaves_the_others_to_a_new_process(
        tmp_path, monkeypatch, capfd):
    def lose_the_gpu(case, *args, **kwargs):
        monkeypatch.setattr(gpu_run, '_is_lost', lambda device: True)
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(gpu_run, 'measure', lose_the_gpu)
    monkeypatch.setattr(gpu_run, 'cases', lambda: [Case('resnet18', batch=1), Case('resnetfoo', batch=1)])
    assert gpu_run.run('cpu', 10, tmp_path, rounds=2) == ['case 1', 'case 2']
    before, _, after = capfd.readouterr().out.partition('a new one continues')
    assert 'an illegal memory access' in before
    assert 'resnetfoo_plugin is unknown' in after  # the new process has the original measure()


def test_a_device_that_computes_is_not_lost():
    assert not gpu_run._is_lost('cpu')


def test_a_folder_that_takes_no_table_is_refused_before_the_tests_run(tmp_path, monkeypatch):
    (tmp_path / 'results').write_text('a file')
    monkeypatch.setattr(gpu_run, '_tests', lambda *args: pytest.fail('the tests ran'))
    with pytest.raises(OSError, match='results cannot be a folder of results'):
        gpu_run.run('cpu', 1, tmp_path / 'results', tmp_path)


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


DEAF = """
import signal, time
def test_deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(600)
def test_wrong():
    assert False, 'this is said'
"""


@pytest.mark.slow
def test_a_test_that_no_signal_reaches_as_in_a_call_of_cuda_leaves_the_others_their_report(tmp_path, capfd):
    for folder in ('gpu', 'layers/kernels'):
        (tmp_path / 'tests' / folder).mkdir(parents=True)
    (tmp_path / 'tests' / 'gpu' / 'test_deaf.py').write_text(DEAF)
    (tmp_path / 'tests' / 'layers' / 'kernels' / 'interpreted.py').touch()
    assert gpu_run._tests('cuda', tmp_path / 'tests', 100) == 1
    out = capfd.readouterr().out
    assert 'this is said' in out
    assert "crashed while running 'tests/gpu/test_deaf.py::test_deaf'" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_machine_without_the_device_and_too_few_rounds_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match='--device cuda needs CUDA'):
        gpu_run.run('cuda', 1, tmp_path)
    with pytest.raises(ValueError, match='rounds=1 is too few'):
        gpu_run.run('cpu', 1, tmp_path, rounds=1)
