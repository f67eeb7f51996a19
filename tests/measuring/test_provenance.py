"""The commit that a result names, with a real git."""

import importlib
import os
import platform
import subprocess
import sys

import pytest
import torch

provenance = importlib.import_module('timm_se_plugin.measuring.provenance')  # the package exports its function


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A repository with a package and results in it; runs git there."""
    def run(*command):
        identity = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
        return subprocess.run(
            ['git', *identity, '-C', tmp_path, *command], check=True, capture_output=True, text=True).stdout.strip()

    run('init', '-q')
    for name in ('package/measuring/provenance.py', 'package/network.py', 'results/speed.csv'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('')
    monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'package/measuring/provenance.py'))
    return run


def commit():
    return provenance.provenance(torch.device('cpu'))['commit']


def test_plus_says_that_the_package_differs_from_its_commit(git, tmp_path):
    git('add', '.')
    git('commit', '-q', '-m', 'all')
    head = git('rev-parse', '--short', 'HEAD')
    (tmp_path / 'results/speed.csv').write_text('the first row of a table')
    assert commit() == head
    (tmp_path / 'package/network.py').write_text('changed')
    assert commit() == f'{head}+'


def test_no_commit_is_named_that_is_not_the_packages(git):
    git('add', 'results')
    git('commit', '-q', '-m', 'a repository of somebody else, with the package installed inside')
    assert commit() == ''


def test_a_result_says_with_which_instructions_the_cpu_computed():
    """CPUs of one architecture differ; the variable makes PyTorch leave out the newer instructions."""
    code = 'import torch; from timm_se_plugin.measuring.provenance import provenance; ' \
        'print(provenance(torch.device("cpu"))["device"])'
    told = [subprocess.run([sys.executable, '-c', code], env={**os.environ, 'ATEN_CPU_CAPABILITY': name},
                           check=True, capture_output=True, text=True).stdout.split()
            for name in ('default', 'avx2')]
    assert [told[0][0], told[1][0]] == [platform.machine()] * 2
    if platform.machine() in ('x86_64', 'AMD64'):
        assert [told[0][1:], told[1][1:]] == [['DEFAULT'], ['AVX2']]
