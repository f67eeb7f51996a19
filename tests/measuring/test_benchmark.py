"""Time and memory against the plain network."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from timm_se_plugin import AttentionSpec
from timm_se_plugin.files.tables import read_table
from timm_se_plugin.measuring import benchmark, turns
from timm_se_plugin.measuring.benchmark import Case, measure, suite
from timm_se_plugin.placement import ATTENTIONS

TINY = {'base': 'resnet18', 'batch': 2, 'height': 32, 'width': 32}


@pytest.fixture
def clock(monkeypatch):
    """A clock that only steps of networks advance: 2 s for a plain one, 3 s for one with attention."""
    now = [0.0]
    step = benchmark._step

    def timed(model, *args):
        run = step(model, *args)

        def advance():
            run()
            now[0] += 3 if AttentionSpec.of(model) else 2
        return advance

    monkeypatch.setattr(benchmark, '_step', timed)
    monkeypatch.setattr(turns.time, 'perf_counter', lambda: now[0])
    return now


@pytest.mark.parametrize(('dtype', 'measured'), [('float32', True), ('bfloat16', False)])
def test_a_variant_is_measured_with_what_it_refers_to(dtype, measured, clock):
    plain, fused = measure(Case(mode='train', dtype=dtype, **TINY), rounds=2, warmup=1, variants=['fused'])
    assert (plain['variant'], fused['variant'], fused['reference']) == ('plain', 'fused', 'plain')
    assert (plain['milliseconds'], plain['ratio']) == (2000, 1)
    assert [fused[name] for name in ('milliseconds', 'ratio', 'ratio_q25', 'ratio_q75')] == [3000, 1.5, 1.5, 1.5]
    assert clock[0] == 3 * (2 + 3)  # a turn to warm up, and two that are measured
    assert plain['saved_bytes_ratio'] == (1 if measured else '')  # bytes are counted without autocast
    assert (fused['device'], fused['torch']) == (plain['device'], torch.__version__)


def test_variants_are_compiled_beyond_the_number_of_programs_that_torch_allows_one_class(clock, monkeypatch):
    compiled, programs = torch.compile, []

    def counted(model):
        def backend(program, inputs):
            programs.append(model)
            return program.forward
        return compiled(model, backend=backend)

    monkeypatch.setattr(torch, 'compile', counted)
    case = Case('test_resnet', batch=2, height=32, width=32, compiled=True)
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(2):
            measure(case, rounds=2, warmup=1, variants=['fused'])
    assert len(set(programs)) == 4      # the plain network and the one with attention, in each of the two measurements


def test_the_suite_has_every_case_of_the_speed_table():
    cases = [{name: str(value) for name, value in asdict(case).items()} for case in suite()]
    rows = read_table(Path(__file__).parents[2] / 'results' / 'speed-cpu.csv')
    measured = {tuple(row[name] for name in cases[0]) for row in rows}
    assert measured == {tuple(case.values()) for case in cases}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match=r'no variant fusd; choose from plain, plain fused, timm, unfused, fused$'):
        measure(Case(mode='train'), variants=['fusd'])
    with pytest.raises(ValueError, match='rounds=1 is too few'):
        measure(Case(), rounds=1)


@pytest.mark.parametrize(('base', 'attn', 'absent'), [
    ('resnet20_cifar', 'se', {'timm'}), ('resnet26', 'sk', {'timm'}), ('vgg11_bn', 'se', {'timm', 'plain fused'}),
    ('resnet18', 'se', set())])
def test_what_timm_does_not_have_and_what_is_not_fused_is_left_out(base, attn, absent):
    networks = benchmark._networks(Case(base, attn))
    assert {'timm', 'timm folded', 'plain fused'} - networks.keys() == absent | (
        {'timm folded'} if 'timm' in absent else set())
    assert {'plain', 'unfused', 'fused', 'plain folded', 'deployed'} <= networks.keys()


def test_a_network_a_size_and_a_device_that_do_not_exist_are_refused():
    for case, device, said in (
            (Case('resnetfoo'), 'cpu', 'the model resnetfoo_plugin is unknown; did you mean'),
            (Case(batch=0), 'cpu', 'batch=0 is not 1 or more'), (Case(width=-1), 'cpu', 'width=-1 is not 1 or more'),
            (Case(), 'gpu', 'gpu is not a device of torch, such as cpu or cuda:1'),
            (Case(), 'meta', '--device meta computes nothing; give cpu or cuda')):
        with pytest.raises(ValueError, match=said):
            measure(case, device=device)


def test_a_gpu_that_the_machine_does_not_have_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(ValueError, match='--device cuda:1 is not here: torch finds 1 CUDA devices'):
        measure(Case(), device='cuda:1')


def test_all_attentions_of_the_flag_are_measured_in_turns(clock):
    case = Case('resnet20_cifar', 'all', mode='train', batch=11, height=32, width=32)
    rows = measure(case, rounds=2, warmup=0, variants=['eca', 'sk+se'])
    assert [(row['variant'], row['ratio']) for row in rows] == [('plain', 1), ('sk+se', 1.5), ('eca', 1.5)]
    with pytest.raises(ValueError, match=f'choose from plain, {", ".join(ATTENTIONS)}$'.replace('+', r'\+')):
        measure(case, variants=['fused'])
