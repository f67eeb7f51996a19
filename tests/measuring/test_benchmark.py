"""Time and memory against the plain network."""

import pytest

from timm_se_plugin.measuring.benchmark import Case, measure

TINY = {'base': 'resnet18', 'batch': 2, 'height': 32, 'width': 32}


@pytest.mark.parametrize(('dtype', 'measured'), [('float32', True), ('bfloat16', False)])
def test_a_variant_is_measured_with_what_it_refers_to(dtype, measured):
    plain, fused = measure(Case(mode='train', dtype=dtype, **TINY), rounds=2, warmup=0, variants=['fused'])
    assert (plain['variant'], fused['variant'], fused['reference']) == ('plain', 'fused', 'plain')
    assert plain['ratio'] == 1
    assert fused['milliseconds'] > 0
    assert bool(fused['saved_bytes_ratio']) == measured  # what autocast keeps was not what was counted
    assert fused['commit']


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match=r'the case has no variant fusd; its variants: plain, timm, unfused, fused$'):
        measure(Case(mode='train'), variants=['fusd'])
    with pytest.raises(ValueError, match='rounds=1 is too few'):
        measure(Case(), rounds=1)
