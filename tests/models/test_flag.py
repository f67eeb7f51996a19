"""The flag, from a model name and keywords to the network, and what is said when it can't be."""

import json
import logging
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from networks import STRUCTURES, layers, one_per_structure
from parity import gradients, images, randomised
from timm.layers import SEModule
from torch import nn

import timm_se_plugin
from timm_se_plugin import AttentionSpec, add_attention, remove_attention
from timm_se_plugin.layers import SelectiveKernel, SqueezeExcite
from timm_se_plugin.models._registry import architectures
from timm_se_plugin.models._timm_resnets import observed, timm_resnets
from timm_se_plugin.placement.residual import AttentionBasicBlock, AttentionBottleneck
from timm_se_plugin.weights import write_model


def test_every_name_of_timms_resnet_module_is_there():
    bases = timm.list_models(module='resnet', include_tags=False)
    plain = [base for base, found in timm_resnets().items() if found.attn is None]
    assert (len(bases), len(plain)) == (81, 43)
    expected = {f'{base}_plugin' for base in bases}
    expected |= {f'{attn}_{base}_plugin' for attn in ('se', 'sk') for base in plain}
    registered = set(timm.list_models(module='plugin_resnet', include_tags=False))
    assert expected <= registered
    others = {name for name in registered if name.startswith('legacy_')}
    others |= {'resnext26_32x4d_plugin', 'sk_resnext26_32x4d_plugin'}
    assert registered - expected == others


def test_names_and_modules_shadow_nothing_in_timm():
    code = 'import timm, json; print(json.dumps([timm.list_models(include_tags=False), timm.list_modules()]))'
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    names, modules = json.loads(run.stdout)
    assert len(names) > 1000
    assert set(names).isdisjoint(architectures)
    ours = [module for module in timm.list_modules() if module.startswith('plugin_')]
    assert set(ours).isdisjoint(modules)
    assert {name for module in ours for name in timm.list_models(module=module, include_tags=False)} == (
        set(architectures))


def test_importing_builds_no_network():
    code = 'import timm, torch; torch.nn.Module.__init__ = None; import timm_se_plugin'
    subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)


def test_the_tests_know_every_structure():
    assert tuple(one_per_structure()) == STRUCTURES


def test_the_table_says_what_the_installed_timm_builds():
    known = timm_resnets()
    assert {name: found for name, found in observed().items() if known.get(name) != found} == {}, (
        'timm has moved: run tools/update_timm_resnets.py')


def test_the_flag_and_the_name_say_the_same():
    assert AttentionSpec.of(timm.create_model('resnet10t_plugin', attn='se')) == AttentionSpec('se')
    assert AttentionSpec.of(timm.create_model('se_resnet10t_plugin')) == AttentionSpec('se')
    assert AttentionSpec.of(timm.create_model('resnet10t_plugin')) is None


def test_stages_choose_the_blocks():
    model = timm.create_model('se_resnet18_plugin', attn_stages=(2, 4))
    assert layers(model) == {f'layer{stage}.{block}.se' for stage in (2, 4) for block in (0, 1)}


def test_se_and_sk_share_a_network_or_a_stage():
    model = timm.create_model('sk_resnet18_plugin', attn_stages=(3,))
    assert layers(model, SelectiveKernel) == {'layer3.0.conv1', 'layer3.1.conv1'}
    model = timm.create_model('resnet18_plugin', attn='sk+se', attn_stages=(1, 3), attn_sk_stages=(3, 4))
    assert layers(model) == {f'layer{stage}.{block}.se' for stage in (1, 3) for block in (0, 1)}
    assert layers(model, SelectiveKernel) == {f'layer{stage}.{block}.conv1' for stage in (3, 4) for block in (0, 1)}


def test_sk_options_reach_the_layer():
    model = timm.create_model(
        'resnet14t_plugin', attn='sk', attn_kernels=(3, 5, 7), attn_keep_3x3=False, attn_groups=(1, 2, 4),
        attn_rd_min_channels=8, attn_split_input=False)
    unit = model.layer1[0].conv2
    assert [(path.conv.kernel_size[0], path.conv.groups) for path in unit.paths] == [(3, 1), (5, 2), (7, 4)]
    assert unit.attn.fc_reduce.out_channels == 8
    model = timm.create_model('sk_resnet14t_plugin', attn_select='sum', attn_split_input=True)
    assert model.layer1[0].conv2.attn is None
    assert model.layer1[0].conv2.paths[0].conv.in_channels == 32


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
    assert len(layers(model)) == 8  # timm would build the network without
    for fused in ({}, {'attn_fused': 'auto'}, {'attn_fused': False}):
        model = timm.create_model('resnet18_plugin', block_args={'attn_layer': 'se'}, **fused)
        assert len(layers(model, SEModule)) == 8
    with pytest.raises(ValueError, match='attn_fused=True is not possible with attention that timm has built from blo'):
        timm.create_model('resnet18_plugin', block_args={'attn_layer': 'se'}, attn_fused=True)


def test_a_base_keeps_its_attention_unless_the_flag_replaces_it_and_says_so(caplog):
    assert len(layers(timm.create_model('seresnet18_plugin'), SEModule)) == 8
    assert caplog.text == ''
    with caplog.at_level(logging.WARNING):
        model = timm.create_model('seresnet18_plugin', attn='eca')
    assert 'seresnet18_plugin carries' in caplog.text
    assert layers(model, SEModule) == set()
    assert layers(timm.create_model('seresnet18_plugin', attn='none'), (SEModule, SqueezeExcite)) == set()


@pytest.mark.parametrize(('name', 'kwargs', 'message'), [
    ('resnet18_plugin', {'attn_gate': 'tanh'}, r'attn_gate is given without attn; say which .* attn=se \| '),
    ('resnet18_plugin', {'attn_layer': 'se'}, 'attn_layer is given without attn; resnet18_plugin has no such argument'),
    ('resnet18_plugin', {'attn': ['se']}, r"attn=\['se'\] is not a known attention; choose one of se"),
    ('resnet18_plugin', {'attn': 'none', 'attn_gate': 'tanh'}, "attn='none' has no options; given: attn_gate"),
    ('resnet18_plugin', {'attn': 'cat'}, "attn='cat' is not a known attention; choose one of se, .* or register"),
    ('se_resnet18_plugin', {'attn': 'eca'}, "se_resnet18_plugin has attn='se', not 'eca'; resnet18_plugin accepts any"),
    ('se_resnet18_plugin', {'attn_rd_ratio': 16}, 'did you mean 1/16'),
    ('se_resnet18_plugin', {'block_args': {'attn_layer': 'eca'}}, "has 'attn_layer' beside attn='se'"),
    ('ecaresnet50d_pruned_plugin', {'attn': 'se'}, 'pruned together with its attention'),
    ('se_resnet50_plugin.a9_in1k', {}, "no tag 'a9_in1k'; its tags are a1_in1k, a2_in1k, a3_in1k, .*, ra2_in1k"),
    ('se_resnet10t_plugin.a1_in1k', {}, "no tag 'a1_in1k'; its tags are from_c3_in1k"),
    ('sk_resnet10t_plugin.a1_in1k', {}, "no tag 'a1_in1k'; its tags are none"),
])
def test_impossible_request_is_one_clear_error(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **kwargs)


def test_entrypoints_are_importable_and_take_none_for_an_option():
    entrypoint = timm_se_plugin.models.plugin_resnet.resnet10t_plugin
    assert entrypoint is timm.models.model_entrypoint('resnet10t_plugin')
    assert AttentionSpec.of(entrypoint(attn=None, block_args=None)) is None


def test_the_same_attention_refines_what_the_base_carries():
    model = timm.create_model('resnetrs50_plugin', attn='se', attn_bias=False, layers=(1, 1, 1, 1))
    assert AttentionSpec.of(model) == AttentionSpec('se', rd_ratio=0.25, rd_divisor=8, bias=False)
    assert AttentionSpec.of(timm.create_model('seresnet18_plugin', attn='se', attn_init='identity')).gate == (
        'double_sigmoid')


@pytest.mark.parametrize('how', ['forward', 'forward_features', 'forward_intermediates', 'features_only'])
def test_wrong_channels_are_torchs_one_clear_error_on_every_way_through(how):
    model = timm.create_model('se_resnet10t_plugin', features_only=how == 'features_only')
    with pytest.raises(RuntimeError, match=r'expected input\[1, 4, 64, 64\] to have 3 channels, but got 4'):
        getattr(model, how if how != 'features_only' else 'forward')(torch.zeros(1, 4, 64, 64))


def test_tracing_warns_of_nothing():
    torch.jit.trace(timm.create_model('se_resnet10t_plugin').eval(), torch.zeros(1, 3, 64, 64))


def test_legacy_networks_keep_the_norms_options_and_take_kernels_beside_their_strides():
    norm_layer = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
    bn2 = timm.create_model('legacy_seresnet18_plugin', norm_layer=norm_layer).layer1[0].bn2
    assert (bn2.eps, bn2.momentum) == (1e-3, 0.01)
    block = timm.create_model('legacy_seresnet50_plugin', attn='sk', layers=(1, 1, 1, 1)).layer2[0]
    assert (block.conv1.stride, block.conv2.paths[0].conv.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_a_plain_network_runs_its_blocks_fused_when_asked(name, tmp_path):
    sizes = {'layers': (1, 1, 1, 1), 'channels': (8, 16, 24, 32), 'num_classes': 3}
    reference = randomised(timm.create_model(name, **sizes)).double()
    model = timm.create_model(f'{name}_plugin', attn_fused=True, **sizes).double()
    model.load_state_dict(reference.state_dict())
    out, found = gradients(model, images(2, 3, 64, 64))
    expected_out, expected = gradients(reference, images(2, 3, 64, 64))
    torch.testing.assert_close(out, expected_out, rtol=1e-9, atol=1e-9)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-9)
    assert AttentionSpec.of(model) is None
    loaded = write_model(model.float(), tmp_path)
    assert {block.fused for block in loaded.modules() if isinstance(block, AttentionBasicBlock | AttentionBottleneck)
            } == {True}
    add_attention(loaded, 'se')
    remove_attention(loaded)
    assert not any(isinstance(block, AttentionBasicBlock | AttentionBottleneck) for block in loaded.modules())


def test_attn_fused_alone_is_refused_where_it_does_nothing():
    with pytest.raises(ValueError, match="attn_fused='always' is not one of auto, True, False"):
        timm.create_model('resnet18_plugin', attn_fused='always')
    with pytest.raises(ValueError, match="concerns timm's residual blocks, and a CheckpointedInceptionV3 has none"):
        timm.create_model('inception_v3_plugin', attn_fused=True)
