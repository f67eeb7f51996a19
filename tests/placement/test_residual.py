"""The fused tail against the module-by-module path, in whole networks of both block types, in float64."""

import copy
import itertools

import pytest
import timm
import torch
from parity import gradients, images, randomised, relative_error, set_mode
from torch import nn

from timm_se_plugin.measuring.complexity import saved_bytes
from timm_se_plugin.placement import AttentionSpec, residual, surgery

INTEGRATIONS = ['standard', 'pre', 'post', 'identity', '3x3']


def twins(seed=0, **kwargs):
    """The same network on the fused and on the plain path; (BasicBlock, BasicBlock, Bottleneck, BasicBlock)."""
    options = {'layers': (2, 1, 2, 1), 'num_classes': 8, **kwargs}
    fused = randomised(timm.create_model('se_test_resnet_plugin', **options), seed).double()
    plain = timm.create_model('se_test_resnet_plugin', attn_fused=False, **options).double()
    plain.load_state_dict(fused.state_dict())
    return fused, plain


def run(model, x):
    torch.manual_seed(0)  # the same stochastic depth
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    out, grads = gradients(model, x)
    return out, {name: grad for name, grad in grads.items() if name == 'input' or name in trained}


@pytest.fixture
def fused_calls(monkeypatch):
    calls = []
    original = residual.residual_tail
    monkeypatch.setattr(residual, 'residual_tail', lambda *args, **kw: (calls.append(1), original(*args, **kw))[1])
    return calls


CASES = list(itertools.product(
    INTEGRATIONS, ['train', 'frozen', 'frozen without gradients', 'eval'],
    [torch.contiguous_format, torch.channels_last], [0., 0.4], ['relu', 'silu']))


@pytest.mark.parametrize(('integration', 'mode', 'memory_format', 'drop_path_rate', 'act_layer'), [
    pytest.param(*case, marks=[] if i % 5 == 0 or (case[3] == 0 and case[4] == 'relu') else pytest.mark.slow)
    for i, case in enumerate(CASES)])
def test_fused_and_plain_paths_agree(integration, mode, memory_format, drop_path_rate, act_layer, fused_calls):
    fused, plain = twins(attn_integration=integration, drop_path_rate=drop_path_rate, act_layer=act_layer)
    x = images(3, 3, 35, 32).to(memory_format=memory_format)
    results, calls = [], []
    for model in (fused, plain):
        model.to(memory_format=memory_format)
        set_mode(model, mode)
        fused_calls.clear()
        results.append(run(model, x))
        calls.append(len(fused_calls))
    # Where nothing scales the map, the modules run as they are; the first block has no stochastic depth.
    scaled = 6 if integration in ('standard', 'identity') else 5 if drop_path_rate else 0
    assert calls == [scaled, 0]
    (out, grads), (expected_out, expected) = results
    assert relative_error(out, expected_out) < 1e-10
    assert grads.keys() == expected.keys()
    noise = 1e-3 * max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in expected.items():
        assert float((grads[name] - grad).abs().max()) < 1e-10 * max(noise, float(grad.abs().max())), name
    for (name, buffer), theirs in zip(fused.named_buffers(), plain.buffers(), strict=True):
        assert relative_error(buffer.double(), theirs.double()) < 1e-10, name


@pytest.mark.parametrize('integration', INTEGRATIONS)
def test_a_traced_graph_changes_its_mode_with_its_norms(integration):
    fused, _ = twins(attn_integration=integration)
    x = images(2, 3, 32, 32)
    in_training, in_evaluation = (torch.fx.symbolic_trace(fused.train(mode)) for mode in (True, False))
    expected = run(copy.deepcopy(fused).train(), x)
    out, grads = run(in_evaluation.train(), x)
    assert torch.equal(out, expected[0])
    assert all(torch.equal(grads[name], expected[1][name]) for name in grads)
    assert torch.equal(in_training.eval()(x), fused.eval()(x))


@pytest.mark.parametrize('stages', [(1,), (3,), (2, 4)])
def test_only_the_stages_named_are_fused(stages, fused_calls):
    fused, plain = twins(attn_stages=stages)
    fused_calls.clear()
    x = images(2, 3, 32, 32)
    assert relative_error(fused(x), plain(x)) < 1e-10
    assert len(fused_calls) == sum((2, 1, 2, 1)[stage - 1] for stage in stages)


def test_fused_true_says_why_it_cannot():
    model = timm.create_model('se_test_resnet_plugin', attn_fused=True, attn_squeeze='max')
    with pytest.raises(ValueError, match=r"attn_fused=True, but .* squeeze .*; choose 'auto' or False"):
        model(torch.zeros(2, 3, 32, 32))
    model = timm.create_model('se_resnet50_gn_plugin', layers=(1, 1, 1, 1), attn_fused=True)
    with pytest.raises(ValueError, match='attn_fused=True, but the norm is a GroupNorm'):
        model(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize('convert', [
    nn.SyncBatchNorm.convert_sync_batchnorm, timm.layers.freeze_batch_norm_2d,
], ids=['SyncBatchNorm', 'FrozenBatchNorm2d'])
def test_replaced_norms_are_noticed(convert):
    fused, plain = (convert(model.eval()) for model in twins())
    x = images(2, 3, 32, 32)
    assert relative_error(fused(x), plain(x)) < 1e-10


class FrozenBatchNorm2d(nn.Module):
    """DETR's, which has no attribute ``eps``."""

    def __init__(self, channels: int, device=None, dtype=None) -> None:
        super().__init__()
        for name, value in dict(weight=1.0, bias=0.0, running_mean=0.1, running_var=2.0).items():
            self.register_buffer(name, torch.full((channels,), value, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise by constants."""
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


def test_a_frozen_norm_of_the_users_own_is_called():
    fused, plain = twins(norm_layer=FrozenBatchNorm2d)
    x = images(2, 3, 32, 32)
    assert relative_error(fused(x), plain(x)) < 1e-10


def test_hooks_see_the_gate_on_both_paths_and_the_attention_on_the_plain_one(fused_calls):
    gates = {}
    networks = twins()
    fused_calls.clear()
    for model in networks:
        seen = []
        for module in model.modules():
            if type(module).__name__ == 'Sigmoid':
                module.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.detach()))
        model.eval()(images(2, 3, 32, 32))
        gates[model] = seen
    assert len(fused_calls) == 6
    for gate, expected in zip(*gates.values(), strict=True):
        torch.testing.assert_close(gate, expected, rtol=1e-10, atol=1e-12)
    fused, _ = twins()
    outputs = []
    fused.layer1[0].se.register_forward_hook(lambda module, args, out: outputs.append(out))
    fused_calls.clear()
    fused(images(2, 3, 32, 32))
    assert len(outputs) == 1
    assert len(fused_calls) == 5  # the hooked block went module by module


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_a_hook_is_called_on_any_module_of_a_fused_block(mode):
    fused, plain = twins()
    x = images(2, 3, 16, 16)
    for name, module in plain.get_submodule('layer3.0').named_modules():
        called = []
        hooks = [model.get_submodule(f'layer3.0.{name}'.strip('.')).register_forward_hook(
            lambda module, args, out, called=called, kind=kind: called.append(kind))
            for kind, model in (('fused', fused), ('plain', plain))]
        for model in (fused, plain):
            set_mode(model, mode)
            with torch.no_grad():
                model(x)
        for hook in hooks:
            hook.remove()
        assert called.count('fused') == called.count('plain'), (name, type(module))


@pytest.mark.parametrize('base', ['resnet18', 'resnet26', 'resnext50_32x4d'])
def test_se_keeps_hardly_more_for_the_backward_pass_than_the_plain_network(base):
    x = images(2, 3, 192, 192, dtype=torch.float32)
    plain = saved_bytes(timm.create_model(base, layers=(2, 2, 2, 2)), x)
    fused = saved_bytes(timm.create_model(f'se_{base}_plugin', layers=(2, 2, 2, 2)), x)
    unfused = saved_bytes(timm.create_model(f'se_{base}_plugin', layers=(2, 2, 2, 2), attn_fused=False), x)
    assert fused < 1.01 * plain
    assert unfused > 1.1 * plain


def test_copies_and_averages_keep_the_fused_path(fused_calls):
    model, _ = twins()
    for copied in (copy.deepcopy(model), timm.utils.ModelEmaV3(model).module):
        fused_calls.clear()
        copied(images(2, 3, 32, 32))
        assert len(fused_calls) == 6


@pytest.mark.parametrize('attn', ['sse', 'scse'])
@pytest.mark.parametrize('channels', [16, 512])
def test_spatial_gates_start_between_their_ends_for_any_number_of_channels(attn, channels):
    layer = AttentionSpec(attn).create(channels)
    residual.initialise_as_timm(layer)
    gates = []
    layer.get_submodule('sse.gate' if attn == 'scse' else 'gate').register_forward_hook(
        lambda module, args, output: gates.append(output))
    layer(torch.randn(4, channels, 16, 16))
    assert ((gates[0] < 0.05) | (gates[0] > 0.95)).float().mean() < 0.2


@pytest.mark.parametrize('name', ['regnetx_002_plugin', 'res2net50_14w_8s_plugin', 'resnetv2_18_plugin'])
def test_networks_of_other_families_learn_with_every_gate(name):
    net = timm.create_model(name, attn='se', attn_gate='tanh', attn_bias=False, num_classes=3)
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize('base', ['resnet18_plugin', 'resnet26_plugin'])
@pytest.mark.parametrize(('gate', 'bias', 'last'), [
    ('tanh', False, 1), ('relu', False, 1), ('tanh', True, 0), ('sigmoid', False, 0)])
def test_branches_learn_with_every_gate(base, gate, bias, last):
    net = timm.create_model(base, attn='se', attn_gate=gate, attn_bias=bias, num_classes=3)
    norms = [block.bn3 if 'bn3' in dict(block.named_children()) else block.bn2 for block in net.layer1]
    assert all((norm.weight == last).all() for norm in norms)
    net.init_weights()  # as after to_empty()
    assert all((norm.weight == last).all() for norm in norms)
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    assert any(parameter.grad.any() for name, parameter in net.named_parameters() if name.startswith('layer4.1'))


def test_an_error_leaves_the_last_norms_as_they_were(monkeypatch):
    net = timm.create_model('resnet10t')
    filled = []

    def fill(place, spec, layer):
        filled.append(place)
        if len(filled) == 3:
            raise RuntimeError('no')
        return original(place, spec, layer)

    original = surgery._fill
    monkeypatch.setattr(surgery, '_fill', fill)
    with pytest.raises(RuntimeError, match='no'):
        surgery.add_attention(net, 'se', gate='tanh', bias=False)
    assert not any(stage[0].bn2.weight.any() for stage in (net.layer1, net.layer2, net.layer3, net.layer4))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('integration', INTEGRATIONS)
@torch.no_grad()
def test_one_image_at_inference_gives_what_the_modules_give(integration, memory_format, monkeypatch):
    fused, plain = (model.eval() for model in twins(attn_integration=integration, drop_path_rate=0.4))
    x, gated = images(1, 3, 128, 128).contiguous(memory_format=memory_format), []
    original = residual.gated_conv
    monkeypatch.setattr(residual, 'gated_conv', lambda *args: (gated.append(args[1]), original(*args))[1])
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-10, atol=1e-10)
    assert gated == [block.conv3 for block in fused.layer3 if integration == 'standard']
    fused.layer3[0].conv3.register_forward_hook(lambda module, args, output: output * 2)
    plain.layer3[0].conv3.register_forward_hook(lambda module, args, output: output * 2)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-10, atol=1e-10)


@pytest.mark.sizes_matter
@pytest.mark.parametrize(('size', 'gradients', 'fused', 'is_asked'), [
    (32, False, 'auto', False), (32, False, True, True), (32, True, 'auto', True), (512, False, 'auto', True)])
def test_a_small_image_at_inference_runs_module_by_module(size, gradients, fused, is_asked, monkeypatch):
    model = timm.create_model('se_test_resnet_plugin', attn_fused=fused).eval()
    called, original = [], residual.norm_act
    monkeypatch.setattr(residual, 'norm_act', lambda *args: (called.append(1), original(*args))[1])
    with torch.set_grad_enabled(gradients):
        model(torch.randn(1, 3, size, size))
    assert bool(called) is is_asked
