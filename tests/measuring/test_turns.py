"""Steps timed in turns."""

import pytest
import torch

from timm_se_plugin.measuring import turns


def test_steps_take_turns_in_going_first_and_the_warm_up_is_not_measured(monkeypatch):
    calls, reported = [], []
    monkeypatch.setattr(turns.time, 'perf_counter', lambda: float(''.join(calls).count('c')))  # only c takes time
    steps = {name: lambda name=name: calls.append(name) for name in 'abc'}
    seconds = turns.time_in_turns(steps, rounds=3, warmup=1, report=reported.append)
    assert ''.join(calls) == 'abc' 'bca' 'cab' 'abc'
    assert seconds == {'a': [0, 0, 0], 'b': [0, 0, 0], 'c': [1, 1, 1]}
    assert reported == [0, 1, 2, 3]


@pytest.mark.parametrize('kind', ['cuda', 'mps'])
def test_a_clock_is_read_when_the_device_has_computed_everything(kind, monkeypatch):
    calls, device = [], torch.device(kind, 0)
    monkeypatch.setattr(torch.accelerator, 'current_accelerator', lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, 'synchronize', lambda device: calls.append(device))
    monkeypatch.setattr(turns.time, 'perf_counter', lambda: calls.append('clock') or 0)
    turns.time_in_turns({'a': lambda: calls.append('step')}, rounds=1, warmup=0, device=device)
    assert calls == [device, 'clock', 'step', device, 'clock']
    calls.clear()
    turns.time_in_turns({'a': lambda: calls.append('step')}, rounds=1, warmup=0, device=torch.device('cpu'))
    assert calls == ['clock', 'step', 'clock']
