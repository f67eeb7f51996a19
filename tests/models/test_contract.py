"""What timm asks of its own models, asked of the plugin's: see timm's tests/test_models.py."""

import copy
import json
import pickle
import re
import weakref

import pytest
import timm
import torch
from networks import parametrised_names, resnets, shallow, transformed_names
from parity import images, most_calls, needs_new_timm, relative_error, saved
from timm.models import FeatureGraphNet, save_for_hf
from timm.optim import create_optimizer_v2
from torch import fx

import timm_se_plugin
from timm_se_plugin.placement.spec import ATTENTIONS
from timm_se_plugin.weights import write_model

names = pytest.mark.parametrize('name', parametrised_names())
few_names = pytest.mark.parametrize('name', transformed_names())
SIZE = 64


def batch(model, n=2, size=None):
    size = size or side(model)
    return images(n, model.in_chans if hasattr(model, 'in_chans') else 3, size, size, dtype=torch.float32)


def side(model):
    return min(SIZE, model.pretrained_cfg['input_size'][-1])


@names
def test_forward_and_backward_reach_every_parameter(name):
    assert_trains(shallow(name, num_classes=42))


@pytest.mark.slow
@pytest.mark.parametrize('name', resnets())
def test_whole_network_trains(name):
    assert_trains(timm.create_model(name, num_classes=42))


def assert_trains(model):
    model.train()
    x = batch(model)
    out = model(x)
    assert out.shape == (2, 42)
    assert out.isfinite().all()
    out.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@names
def test_gradient_checkpointing_changes_nothing(name):
    model = shallow(name).train()
    x = batch(model)
    outs, grads = [], []
    for enable in (False, True):
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        out = twin(x)
        out.square().mean().backward()
        outs.append(out)
        grads.append([p.grad for p in twin.parameters()])
    torch.testing.assert_close(outs[1], outs[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-5)
    assert most_calls(twin, x) == 2  # in the backward pass, blocks are computed again


@names
def test_pretrained_cfg_describes_the_network(name):
    cfg = timm.get_pretrained_cfg(name)
    model = shallow(name).eval()
    keys = model.state_dict()
    assert f'{cfg.classifier}.weight' in keys
    assert f'{cfg.first_conv}.weight' in keys
    size = min(cfg.input_size[-1], 224)
    if size == cfg.input_size[-1]:
        with torch.no_grad():
            assert tuple(model.forward_features(batch(model, 1, size)).shape[-2:]) == tuple(cfg.pool_size)


@few_names
def test_classifier_can_be_reset_and_left_out(name):
    model = shallow(name).eval()
    x = batch(model)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features
        model.reset_classifier(10)
        assert model(x).shape == (2, 10)
        model.reset_classifier(0)
        assert model(x).shape == (2, model.head_hidden_size)
        model.reset_classifier(0, '')
        assert model(x).shape == features.shape
        bare = shallow(name, num_classes=0, global_pool='').eval()
        assert bare(x).shape == features.shape
        assert shallow(name, in_chans=1).eval()(x[:, :1]).shape == (2, timm.get_pretrained_cfg(name).num_classes)


@few_names
def test_scripted_network_is_equal(name):
    model = shallow(name, scriptable=True).eval()
    x = batch(model)
    with torch.no_grad():
        assert relative_error(torch.jit.script(model)(x), model(x)) < 1e-4


@few_names
@pytest.mark.parametrize('feature_cls', [
    'list', 'fx', *(pytest.param(cls, marks=pytest.mark.slow) for cls in ('dict', 'hook', 'getter'))])
def test_features_only(name, feature_cls):
    levels = shallow(name).feature_info
    for out_indices in (None, (2, len(levels) - 1)):  # by default all of them
        model = shallow(name, features_only=True, feature_cls=feature_cls, out_indices=out_indices).eval()
        with torch.no_grad():
            features = model(batch(model))
        features = list(features.values()) if isinstance(features, dict) else features
        assert len(features) == (len(out_indices) if out_indices else max(3, len(levels)))
        assert [f.shape[1] for f in features] == model.feature_info.channels()
        assert [side(model) // f.shape[-1] for f in features] == model.feature_info.reduction()


@few_names
@pytest.mark.parametrize('output_stride', [8, 16])
def test_output_stride(name, output_stride):
    model = shallow(name, features_only=True, output_stride=output_stride).eval()
    expected = min(output_stride, shallow(name).feature_info[-1]['reduction'])
    assert model.feature_info.reduction()[-1] == expected
    with torch.no_grad():
        assert model(batch(model))[-1].shape[-1] == side(model) // expected


@few_names
def test_forward_intermediates_are_the_features(name):
    model = shallow(name).eval()
    x = batch(model)
    with torch.no_grad():
        final, intermediates = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        features = FeatureGraphNet(copy.deepcopy(model), out_indices=tuple(range(len(model.feature_info))))(x)
    torch.testing.assert_close(intermediates, features)


@pytest.mark.parametrize(('name', 'head'), [
    ('test_resnet', ''), ('bn_inception_plugin', ''),
    ('test_efficientnet', 'bn2'), ('shufflenetv2_050_plugin', 'conv5')])
@pytest.mark.parametrize('stop_early', [False, True])
def test_levels_alone_update_the_norms_of_all_stages_unless_stopped_as_in_timms_networks(name, head, stop_early):
    model = timm.create_model(name).train()
    stage = model.feature_info[-1]['module']
    model.forward_intermediates(torch.rand(2, 3, 64, 64), [1], stop_early=stop_early, intermediates_only=True)
    seen = {key: int(value) for key, value in model.named_buffers() if key.endswith('num_batches_tracked')}
    assert {value for key, value in seen.items() if key.startswith(f'{stage}.')} == {int(not stop_early)}
    assert not any(value for key, value in seen.items() if head and key.startswith(f'{head}.'))


def test_no_attribute_gets_the_id_by_which_torchscript_knows_an_operator():
    library = torch.library.Library('timm_se_plugin_tests', 'FRAGMENT')
    library.define('scale(Tensor x) -> Tensor')
    first = weakref.ref(torch.ops.timm_se_plugin_tests.scale._op)
    library.define('scale.by(Tensor x, float factor) -> Tensor')
    assert torch.ops.timm_se_plugin_tests.scale._op is not first()
    assert first() is not None


@few_names
def test_fx_graph_is_bitwise_equal_and_scripts(name):
    model = shallow(name).eval()
    x = batch(model)
    graph = fx.symbolic_trace(model)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(graph(x), expected)
        assert relative_error(torch.jit.script(graph)(x), expected) < 1e-4
    train = shallow(name, num_classes=7).train()
    traced = fx.symbolic_trace(train)
    traced(batch(train)).sum().backward()
    assert [n for n, p in traced.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('attn', ATTENTIONS)
def test_a_network_with_each_attention_is_traced_by_fx(attn):
    model = timm.create_model('test_resnet_plugin', attn=attn).eval()
    x = batch(model)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(model)(x), model(x))


@few_names
def test_exported_program_is_equal(name):
    model = shallow(name).eval()
    x = batch(model)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        assert relative_error(program.module()(x), model(x)) < 1e-4


@names
def test_layer_decay_puts_attention_with_its_block(name):
    model = shallow(name)
    optimizer = create_optimizer_v2(model, opt='sgd', lr=1., layer_decay=0.5, weight_decay=0.1)
    scale = {id(p): group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    blocks: dict[str, set[float]] = {}
    for key, parameter in model.named_parameters():
        block = re.match(r'(layer\d+|stages\.\d+\.blocks|stage\d+)\.\d+', key)
        if block:
            blocks.setdefault(block.group(), set()).add(scale[id(parameter)])
    assert len(blocks) >= 3
    assert all(len(scales) == 1 for scales in blocks.values())
    assert len(set.union(*blocks.values())) == len(blocks)


@needs_new_timm
@few_names
def test_saved_folder_reproduces_the_model(name, tmp_path):
    model = shallow(name, num_classes=5, in_chans=1).eval()
    save_for_hf(model, tmp_path / 'safe', safe_serialization=True)
    with torch.no_grad():
        expected = model(batch(model))
    save_for_hf(model.to(memory_format=torch.channels_last), tmp_path / 'channels_last')  # as .bin: see the README
    for folder in ('safe', 'channels_last'):
        reloaded = timm.create_model(f'local-dir:{tmp_path / folder}', pretrained=True).eval()
        assert timm_se_plugin.AttentionSpec.of(reloaded) == timm_se_plugin.AttentionSpec.of(model)
        with torch.no_grad():
            torch.testing.assert_close(reloaded(batch(model)), expected, rtol=1e-4, atol=1e-5)


@few_names
def test_copies_are_equal(name):
    model = shallow(name).eval()
    x = batch(model)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(x), model(x))
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.parametrize('name', [
    'se_test_resnet_plugin', pytest.param('se_resnet50_plugin', marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(name):
    model = shallow(name).double().train()
    x = batch(model).double()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend='aot_eager')
    out, expected = compiled(x), model(x)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    for (name, found), parameter in zip(compiled.named_parameters(), model.parameters(), strict=True):
        assert relative_error(found.grad, parameter.grad) < 1e-9, name


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('attn', [
    pytest.param(attn, marks=[] if attn in (None, 'se', 'sk') else pytest.mark.slow) for attn in (None, *ATTENTIONS)])
def test_a_compiled_network_is_compiled_once(attn, train):
    model = timm.create_model('test_resnet_plugin', attn=attn)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager' if train else 'eager').train(train)
    with torch._dynamo.config.patch(error_on_recompile=True), torch.set_grad_enabled(train):
        for _ in range(2):
            out = compiled(batch(model))
            if train:
                out.sum().backward()
                compiled.zero_grad()


@pytest.mark.parametrize('integration', ['standard', 'pre', 'post', 'identity', '3x3'])
@pytest.mark.parametrize('squeeze', ['avg', 'max', 'none'])
def test_every_place_is_transformed_and_comes_back(integration, squeeze, tmp_path):
    options = {'attn_integration': integration, 'attn_squeeze': squeeze, 'attn_stages': (1, 3)}
    model = timm.create_model('se_test_resnet_plugin', **options).eval()
    x = batch(model)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(fx.symbolic_trace(model)(x), expected)
        if squeeze == 'avg':
            torch.testing.assert_close(torch.jit.script(model)(x), expected)
            torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        write_model(model, tmp_path)
        assert json.loads((tmp_path / 'config.json').read_text())['model_args']['attn_stages'] == [1, 3]
        assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(x), expected)


def test_saved_warm_start_reproduces_the_model(tmp_path):
    plain = timm.create_model('resnet18', num_classes=1000)
    model = timm.create_model(
        'resnet18_plugin', attn='se', pretrained=True, pretrained_cfg_overlay=saved(plain, tmp_path)).eval()
    write_model(model, tmp_path / 'out')
    reloaded = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert timm_se_plugin.AttentionSpec.of(reloaded).gate == 'double_sigmoid'
    x = batch(model)
    with torch.no_grad():
        assert torch.equal(reloaded(x), model(x))
