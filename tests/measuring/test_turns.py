"""Steps timed in turns."""

from timm_se_plugin.measuring import turns


def test_steps_take_turns_in_going_first_and_the_warm_up_is_not_measured(monkeypatch):
    calls, reported = [], []
    monkeypatch.setattr(turns.time, 'perf_counter', lambda: float(''.join(calls).count('c')))  # only c takes time
    steps = {name: lambda name=name: calls.append(name) for name in 'abc'}
    seconds = turns.time_in_turns(steps, rounds=3, warmup=1, report=reported.append)
    assert ''.join(calls) == 'abc' 'bca' 'cab' 'abc'
    assert seconds == {'a': [0, 0, 0], 'b': [0, 0, 0], 'c': [1, 1, 1]}
    assert reported == [0, 1, 2, 3]
