"""BatchNorm in its input's memory against the module."""

import pytest
import timm
import torch
from torch import fx, nn

from timm_se_plugin.layers.norm_act import norm_act


def modules(dtype=torch.float64):
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(3, 6, 3, dtype=dtype), nn.BatchNorm2d(6, dtype=dtype).eval()
    for values in (bn.weight, bn.bias, bn.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(bn.running_var, 0.5, 2)
    return conv, bn


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('samples', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_gives_what_the_module_gives_in_the_memory_of_its_input(layout, samples, dtype):
    conv, bn = modules(dtype)
    x = conv(torch.randn(samples, 3, 9, 8, dtype=dtype).contiguous(memory_format=layout))
    expected = bn(x)
    out = norm_act(x, bn, conv=conv)
    assert torch.equal(out, expected)
    assert out.data_ptr() == x.data_ptr()
    assert out.stride() == expected.stride()


@torch.no_grad()
def test_works_under_autocast():
    conv, bn = modules(torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        x = conv(torch.randn(2, 3, 9, 8))
        expected = bn(x)
        out = norm_act(x, bn, conv=conv)
        assert torch.equal(out, expected)
        assert out.data_ptr() == x.data_ptr()
    assert x.dtype == torch.bfloat16


class Identity(nn.Conv2d):
    def forward(self, x):
        return x


@pytest.mark.parametrize('change', [
    lambda conv, bn: (conv, bn.train()),
    lambda conv, bn: (Identity(6, 6, 1), bn),
    lambda conv, bn: (conv, nn.GroupNorm(2, 6, dtype=torch.float64)),
    lambda conv, bn: (conv, nn.BatchNorm2d(6, affine=False, dtype=torch.float64).eval()),
    lambda conv, bn: (conv, bn.register_parameter('bias', None) or bn),
    lambda conv, bn: (conv.register_forward_hook(lambda *_: None) and conv, bn),
    lambda conv, bn: (conv, bn.register_forward_hook(lambda *_: None) and bn),
    lambda conv, bn: (setattr(conv, 'forward', conv.forward) or conv, bn),
    lambda conv, bn: (conv, setattr(bn, 'forward', bn.forward) or bn),
], ids=['training', 'no convolution', 'another norm', 'not affine', 'no bias', 'hook on the convolution',
        'hook on the norm', 'replaced forward of the convolution', 'replaced forward of the norm'])
@torch.no_grad()
def test_leaves_its_input_alone_where_somebody_may_hold_it(change):
    conv, bn = change(*modules())
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    before = x.clone()
    norm_act(x, bn, conv=conv)
    assert torch.equal(x, before)


@pytest.mark.parametrize('channels', [4, 8])
@torch.no_grad()
def test_a_norm_of_another_width_is_refused_as_the_module_refuses_it(channels):
    conv, bn = modules()
    x = conv(torch.randn(2, 3, 5, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match='should contain 6 elements'):
        norm_act(x, nn.BatchNorm2d(channels, dtype=torch.float64).eval(), conv=conv)
    with pytest.raises(ValueError, match='expected 4D input'):
        norm_act(x[0], bn, conv=conv)
    block = timm.create_model('se_resnet18_plugin').layer1[0].eval()
    block.bn2 = nn.BatchNorm2d(channels).eval()
    with pytest.raises(RuntimeError, match='should contain 64 elements'):
        block(torch.zeros(1, 64, 8, 8))


def test_is_the_module_where_gradients_are_recorded_and_under_fx():
    conv, bn = modules()
    x = conv(torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert norm_act(x, bn, conv=conv).grad_fn.name() == 'NativeBatchNormBackward0'
    with torch.no_grad():
        graph = fx.symbolic_trace(timm.create_model('se_resnet18_plugin', layers=(1, 1, 1, 1)).eval()).graph
    assert sum(node.op == 'call_module' and 'bn1' in str(node.target) for node in graph.nodes) == 5


@pytest.mark.parametrize('name', ['se_resnet18_plugin', 'se_resnet50_plugin', 'sk_resnet50_plugin'])
@pytest.mark.parametrize('fused', ['auto', False])
def test_networks_call_fewer_norms_only_where_they_are_fused(name, fused, monkeypatch):
    calls = []
    original = nn.BatchNorm2d.forward
    model = timm.create_model(name, layers=(1, 1, 1, 1), attn_fused=fused).eval()
    monkeypatch.setattr(nn.BatchNorm2d, 'forward', lambda self, x: (calls.append(1), original(self, x))[1])
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    norms = sum(type(module) is nn.BatchNorm2d for module in model.modules())
    of_attention = sum('.attn.' in key and type(module) is nn.BatchNorm2d for key, module in model.named_modules())
    assert len(calls) == (norms if fused is False else of_attention)
