"""The command for a borrowed GPU, rehearsed on the CPU."""

import pytest

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
