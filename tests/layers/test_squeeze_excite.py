import pytest
import torch
from parity import gradients, images, relative_error
from timm.layers import SEModule
from torch import nn

from timm_se_plugin.layers import SqueezeExcite
from timm_se_plugin.layers.squeeze_excite import GATES, reduced_channels, spatial_mean


@pytest.mark.parametrize('size', [(1, 1), (7, 7), (5, 9)])
@pytest.mark.parametrize('channels', [64, 80, 256])
def test_matches_timms_module_in_float64(channels, size):
    reference = SEModule(channels).double()
    layer = SqueezeExcite(channels, rd_divisor=8).double()
    layer.load_state_dict(reference.state_dict())
    out, grads = gradients(layer, images(3, channels, *size))
    expected, expected_grads = gradients(reference, images(3, channels, *size))
    assert relative_error(out, expected) < 1e-14
    for name, grad in expected_grads.items():
        assert relative_error(grads[name], grad) < 1e-12, name


@pytest.mark.parametrize(('channels', 'rd_ratio', 'papers', 'timms'), [
    (64, 1 / 16, 4, 8), (80, 1 / 16, 5, 8), (160, 1 / 16, 10, 8), (192, 1 / 16, 12, 16), (256, 1 / 16, 16, 16),
    (288, 1 / 16, 18, 16), (2080, 1 / 16, 130, 128), (96, 1 / 3, 32, 32), (8, 1 / 16, 1, 8),
])
def test_width_is_the_papers_or_timms(channels, rd_ratio, papers, timms):
    assert reduced_channels(channels, rd_ratio) == papers
    assert reduced_channels(channels, rd_ratio, rd_divisor=8) == timms


def weights(seed=0, **kwargs):
    torch.manual_seed(seed)
    return SqueezeExcite(32, **{'rd_channels': 8, **kwargs})


@pytest.mark.parametrize('option', [
    {'squeeze': 'max'}, {'squeeze': 'none'}, {'bias': False}, {'act_layer': nn.SiLU},
    *({'gate': gate} for gate in GATES if gate != 'sigmoid'), {'rd_channels': 4},
    {'rd_channels': None, 'rd_ratio': 1 / 2},
])
def test_option_changes_the_result(option):
    x = images(2, 32, 6, 6, dtype=torch.float32)
    assert not torch.allclose(weights(**option)(x), weights()(x), atol=1e-4)


def test_gates_are_their_formulas():
    z = images(2, 32, 1, 1, dtype=torch.float32)
    formulas = {
        'sigmoid': torch.sigmoid, 'tanh': torch.tanh, 'relu': torch.relu, 'hard_sigmoid': nn.functional.hardsigmoid,
        'double_sigmoid': lambda t: 2 / (1 + torch.exp(-t)),
    }
    for gate in GATES:
        layer = weights(gate=gate)
        torch.testing.assert_close(layer.excite(z), formulas[gate](layer.fc2(torch.relu(layer.fc1(z)))))


def test_weights_have_the_strides_of_their_gradients_in_any_memory_format():  # DistributedDataParallel would warn
    layer = SqueezeExcite(64).to(memory_format=torch.channels_last)
    layer(images(2, 64, 5, 5).to(memory_format=torch.channels_last).float()).sum().backward()
    for conv in (layer.fc1, layer.fc2):
        assert conv.weight.stride() == conv.weight.grad.stride()
        assert conv.weight.shape[2:] == (1, 1)


def test_identity_starts_at_one_and_learns():
    layer = weights(gate='double_sigmoid', init='identity')
    x = images(2, 32, 6, 6, dtype=torch.float32)
    assert torch.equal(layer(x), x)
    layer(x).square().sum().backward()
    assert layer.fc2.weight.grad.abs().max() > 0


def test_no_squeeze_has_a_gate_for_every_position():
    x = images(2, 32, 6, 6, dtype=torch.float32)
    layer = weights(squeeze='none')
    assert layer.excite(layer.squeeze(x)).shape == x.shape


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_pools_in_float32(dtype, memory_format):
    """112 * 112 values of 100 sum to 1.25 million, beyond float16's 65504."""
    x = torch.full((2, 8, 112, 112), 100., dtype=dtype).to(memory_format=memory_format)
    assert torch.equal(spatial_mean(x), torch.full((2, 8, 1, 1), 100., dtype=dtype))
    x = images(2, 8, 112, 112, dtype=torch.float32).to(dtype)
    assert torch.equal(spatial_mean(x), x.double().mean((2, 3), keepdim=True).to(dtype))


def test_autocast_keeps_the_gate_close_to_float32():
    layer, x = weights(), images(2, 32, 56, 56, dtype=torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = layer(x)
    torch.testing.assert_close(out, layer(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(('option', 'message'), [
    ({'squeeze': 'sum'}, "squeeze='sum' is not one of avg, max, none"),
    ({'init': 'identiy'}, "init='identiy' is not one of default, identity"),
    ({'gate': 'softmax'}, "gate='softmax' is not one of sigmoid, "),
    ({'rd_channels': None, 'rd_ratio': 16}, r'rd_ratio=16 is not a fraction in \(0, 1\]; did you mean 1/16\?'),
    ({'rd_channels': None, 'rd_ratio': 0}, 'rd_ratio=0 is not a fraction'),
    ({'rd_channels': None, 'rd_divisor': 0}, 'rd_divisor=0: a positive integer is needed'),
    ({'rd_channels': 0}, 'rd_channels=0: the inner width must be a positive integer'),
    ({'init': 'identity'}, "init='identity' needs the gate double_sigmoid, not Sigmoid"),
])
def test_unknown_choice_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        weights(**option)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_one_image_is_excited_as_by_the_convolutions(dtype, memory_format, bias):
    torch.manual_seed(0)
    se = SqueezeExcite(48, rd_channels=5, bias=bias).to(dtype).to(memory_format=memory_format)
    z = torch.randn(1, 48, 1, 1, dtype=dtype)
    with torch.no_grad():
        found, expected = se.excite(z), se.gate(se.fc2(se.act(se.fc1(z))))
    assert found.shape == expected.shape == (1, 48, 1, 1)
    torch.testing.assert_close(found, expected)
