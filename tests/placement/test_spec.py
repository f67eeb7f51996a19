import dataclasses
import json

import pytest

from timm_se_plugin import AttentionSpec
from timm_se_plugin.placement import ATTENTIONS


def test_kwargs_round_trip_through_json():
    spec = AttentionSpec('se', integration='pre', stages=(1, 3), rd_ratio=1 / 8, gate='tanh', bias=False, fused=False)
    assert AttentionSpec.from_kwargs(json.loads(json.dumps(spec.to_kwargs()))) == spec


def test_every_field_is_an_option_of_some_attention():
    fields = {field.name for field in dataclasses.fields(AttentionSpec)} - {'attn', 'extra'}
    assert fields == set().union(*(record.names for record in ATTENTIONS.values()))


@pytest.mark.parametrize('attn', ATTENTIONS)
def test_defaults_of_every_attention_come_back(attn):
    assert AttentionSpec.from_kwargs(json.loads(json.dumps(AttentionSpec(attn).to_kwargs()))) == AttentionSpec(attn)


def test_identity_init_brings_its_gate():
    assert AttentionSpec('se', init='identity').gate == 'double_sigmoid'
    assert AttentionSpec('se').gate == 'sigmoid'
    assert (AttentionSpec('ese').gate, AttentionSpec('ese', init='identity').gate) == ('hard_sigmoid', 'double_sigmoid')
    assert AttentionSpec('scse', init='identity').gate == 'sigmoid'  # of the sum of two halves


def test_a_ratio_is_the_papers():
    assert {attn: AttentionSpec(attn).rd_ratio for attn in ATTENTIONS} == {
        **{attn: 1 / 16 for attn in ('se', 'sk', 'sk+se', 'cbam', 'gc', 'bam')}, 'cse': 1 / 2, 'scse': 1 / 2,
        'eca': None, 'ese': None, 'sse': None}


def test_sites_take_the_place_of_integration_and_stages():
    spec = AttentionSpec('se', integration='pre', stages=2).updated({'attn_sites': 'layer1'})
    assert spec == AttentionSpec('se', sites='layer1')
    assert not any(spec.recalibrates(stage) for stage in (1, 2, 3, 4))


def test_a_ratio_may_be_written_as_a_fraction():
    assert AttentionSpec('se', rd_ratio='1/8') == AttentionSpec('se', rd_ratio=0.125)


def test_a_stage_may_be_one_integer_and_order_does_not_matter():
    assert AttentionSpec('se', stages=3) == AttentionSpec('se', stages=[3])
    assert AttentionSpec('se', stages=(4, 1)) == AttentionSpec('se', stages=(1, 4))


def test_differences_leave_out_what_does_not_change_the_computation():
    assert AttentionSpec('se').differences(AttentionSpec('se', fused=False)) == {}
    assert AttentionSpec('se').differences(AttentionSpec('se', gate='tanh')) == {'attn_gate': ('sigmoid', 'tanh')}


@pytest.mark.parametrize(('options', 'message'), [
    ({'attn': 'xse'}, "attn='xse' is not a known attention; choose one of se, "),
    ({'attn_sites': '('}, r"attn_sites='\(' is not a regular expression"),
    ({'attn_sites': 'layer1', 'attn_stages': 2}, r"attn_stages=\(2,\) is given beside attn_sites='layer1'"),
    ({'attn': 'sk', 'attn_sites': 'layer1'}, "attn='sk' has no option attn_sites"),
    ({'attn': 'scse', 'attn_init': 'identity', 'attn_gate': 'tanh'}, "attn_gate='tanh' does not .*; choose sigmoid"),
    ({'attn_rd_ratio': 16}, r'attn_rd_ratio=16 is not a fraction in \(0, 1\]; did you mean 1/16\?'),
    ({'attn_rd_ratio': 0}, 'attn_rd_ratio=0 is not a fraction'),
    ({'attn_rd_ratio': -0.5}, 'attn_rd_ratio=-0.5 is not '),
    ({'attn_rd_ratio': '16/1'}, 'attn_rd_ratio=16.0 is not '),
    ({'attn_rd_ratio': '1/0'}, "attn_rd_ratio='1/0' is not "),
    ({'attn_rd_ratio': 'r'}, "attn_rd_ratio='r' is not "),
    ({'attn_rd_channels': 0}, 'attn_rd_channels=0 is not a positive integer'),
    ({'attn_rd_divisor': 2.5}, 'attn_rd_divisor=2.5 is not '),
    ({'attn_stages': (0, 1)}, r'attn_stages=\(0, 1\) is not one or more of 1, 2, 3, 4'),
    ({'attn_stages': ()}, r'attn_stages=\(\) is not '),
    ({'attn_stages': (2, 2)}, r'attn_stages=\(2, 2\) is not '),
    ({'attn_stages': 'all'}, "attn_stages='all' is not "),
    ({'attn_gate': 'softmax'}, "attn_gate='softmax' is not one of sigmoid, tanh, relu"),
    ({'attn_squeeze': 'sum'}, "attn_squeeze='sum' is not one of avg, max, none"),
    ({'attn_integration': 'after'}, "attn_integration='after' is not one of standard, pre, post"),
    ({'attn_act_layer': 'rellu'}, "attn_act_layer='rellu' is not the name of an activation"),
    ({'attn_bias': 'yes'}, "attn_bias='yes' is not one of True, False"),
    ({'attn_init': 'zero'}, "attn_init='zero' is not one of default, identity"),
    ({'attn_fused': 'always'}, "attn_fused='always' is not one of auto, True, False"),
    ({'attn_init': 'identity', 'attn_gate': 'sigmoid'}, "'sigmoid' does not start .*; choose double_sigmoid"),
    ({'attn': 'sk', 'attn_kernels': (3, 4)}, r'attn_kernels=\(3, 4\) is not two or more odd sizes'),
    ({'attn': 'sk', 'attn_kernels': [5]}, r'attn_kernels=\(5,\) is not '),
    ({'attn': 'sk', 'attn_groups': (1, 2, 3)}, 'one number, or one for each of the kernels'),
    ({'attn': 'sk', 'attn_select': 'max'}, "attn_select='max' is not one of softmax, sum"),
    ({'attn': 'sk', 'attn_gate': 'tanh'}, "attn='sk' has no option attn_gate"),
    ({'attn_ratio': 0.5}, r'attn_ratio \(did you mean attn_rd_ratio\?\); it has '),
    ({'attn': 'eca', 'attn_bias': False}, "attn='eca' has no option attn_bias; it has"),
    ({'attn': 'se', 'attn_attn': 'eca'}, "attn_attn='eca' is no option; attn names the attention"),
])
def test_bad_option_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionSpec.from_kwargs({'attn': 'se', **options})


def test_bad_option_given_directly_is_refused_too():
    with pytest.raises(ValueError, match="attn='eca' has no option attn_bias"):
        AttentionSpec('eca', bias=False)


def test_zero_is_no_false():
    with pytest.raises(ValueError, match='attn_fused=0 is not '):
        AttentionSpec(fused=0)
