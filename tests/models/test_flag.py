"""The flag, from a model name and keywords to the network, and what is said when it can't be."""

import logging
import subprocess
import sys

import pytest
import timm
from timm.layers import SEModule
from timm.models import _registry

import timm_se_plugin
from timm_se_plugin import AttentionSpec
from timm_se_plugin.layers import SqueezeExcite
from timm_se_plugin.models._blueprint import blueprint
from timm_se_plugin.models.plugin_resnet import architectures


def layers(model, kind=SqueezeExcite):
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


def test_every_name_of_timms_resnet_module_is_there():
    bases = timm.list_models(module='resnet', include_tags=False)
    plain = [base for base in bases if 'attn_layer' not in (blueprint(base).kwargs.get('block_args') or {})]
    assert (len(bases), len(plain)) == (81, 43)
    expected = {f'{base}_plugin' for base in bases}
    expected |= {f'{attn}_{base}_plugin' for attn in ('se', 'sk') for base in plain}
    registered = set(timm.list_models('*_plugin', include_tags=False))
    assert expected <= registered
    others = {name for name in registered if name.startswith('legacy_')} | {'sk_resnext26_32x4d_plugin'}
    assert registered - expected == others


def test_names_and_modules_shadow_nothing_in_timm():
    before = set(timm.list_models(include_tags=False)) - set(architectures)
    assert before.isdisjoint(architectures)
    assert set(timm.list_models(module='plugin_resnet', include_tags=False)) == set(architectures)


def test_importing_builds_nothing_and_costs_a_fifth_of_a_second_at_most():
    code = (
        'import time, timm, torch\n'
        'torch.nn.Module.__init__ = None\n'
        'start = time.perf_counter(); import timm_se_plugin; print(time.perf_counter() - start)')
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.2


def test_the_flag_and_the_name_say_the_same():
    assert AttentionSpec.of(timm.create_model('resnet10t_plugin', attn='se')) == AttentionSpec('se')
    assert AttentionSpec.of(timm.create_model('se_resnet10t_plugin')) == AttentionSpec('se')
    assert AttentionSpec.of(timm.create_model('resnet10t_plugin')) is None


def test_stages_choose_the_blocks():
    model = timm.create_model('se_resnet18_plugin', attn_stages=(2, 4))
    assert layers(model) == {f'layer{stage}.{block}.se' for stage in (2, 4) for block in (0, 1)}


def test_options_reach_the_layer():
    model = timm.create_model(
        'test_resnet_plugin', attn='se', attn_rd_channels=6, attn_gate='tanh', attn_bias=False, attn_act_layer='silu',
        attn_squeeze='max')
    layer = model.layer3[0].se
    assert layer.fc1.weight.shape == (6, 192, 1, 1)
    assert layer.fc1.bias is None
    assert [type(m).__name__ for m in (layer.act, layer.gate)] == ['SiLU', 'Tanh']
    assert layer.squeeze_type == 'max'


def test_user_block_args_are_merged():
    model = timm.create_model('seresnet18_plugin', block_args={})
    assert len(layers(model, SEModule)) == 8
    model = timm.create_model('resnet18_plugin', block_args={'attn_layer': 'se'})
    assert len(layers(model, SEModule)) == 8


def test_a_base_keeps_its_attention_unless_the_flag_replaces_it_and_says_so(caplog):
    assert len(layers(timm.create_model('seresnet18_plugin'), SEModule)) == 8
    assert caplog.text == ''
    with caplog.at_level(logging.WARNING):
        model = timm.create_model('seresnet18_plugin', attn='eca')
    assert 'seresnet18_plugin carries' in caplog.text
    assert layers(model, SEModule) == set()
    assert layers(timm.create_model('seresnet18_plugin', attn='none'), (SEModule, SqueezeExcite)) == set()


@pytest.mark.parametrize(('name', 'kwargs', 'message'), [
    ('resnet18_plugin', {'attn_gate': 'tanh'}, r'attn_gate needs a flag; allowed: attn=se \| '),
    ('resnet18_plugin', {'attn': 'none', 'attn_gate': 'tanh'}, "attn='none' has no options; attn_gate was given"),
    ('resnet18_plugin', {'attn': 'cat'}, "attn='cat' is unknown; allowed: se"),
    ('se_resnet18_plugin', {'attn': 'eca'}, 'allowed: se .in resnet18_plugin the flag is open'),
    ('se_resnet18_plugin', {'attn_rd_ratio': 16}, 'did you mean 1/16'),
    ('se_resnet18_plugin', {'block_args': {'attn_layer': 'eca'}}, "'attn_layer' is not allowed beside attn='se'"),
    ('ecaresnet50d_pruned_plugin', {'attn': 'se'}, 'pruned together with its attention'),
    ('se_resnet50_plugin.a9_in1k', {}, "no tag 'a9_in1k'; allowed: a1_in1k, a2_in1k, a3_in1k, ra2_in1k"),
    ('se_resnet10t_plugin.a1_in1k', {}, "no tag 'a1_in1k'; allowed: none"),
])
def test_impossible_request_is_one_clear_error(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **kwargs)


def test_reregistering_warns_in_timm_as_ever():
    """The registry's private part that decides it is still there."""
    assert 'se_resnet18_plugin' in _registry._model_entrypoints
    assert timm_se_plugin.models.plugin_resnet.se_resnet18_plugin is timm.models.model_entrypoint('se_resnet18_plugin')
