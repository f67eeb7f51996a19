import pytest
import torch
from parity import images, randomised, relative_error
from torch import nn

from timm_se_plugin.layers import ConcurrentSqueezeExcite, SpatialSqueezeExcite
from timm_se_plugin.layers.squeeze_excite import GATES


@pytest.mark.parametrize('gate', [gate for gate in GATES if gate != 'double_sigmoid'])
def test_is_the_sum_of_the_papers_two_equations(gate):
    layer = randomised(ConcurrentSqueezeExcite(8, gate=gate)).double()
    x = images(2, 8, 5, 7)
    act = {'sigmoid': torch.sigmoid, 'tanh': torch.tanh, 'relu': torch.relu, 'hard_sigmoid': nn.Hardsigmoid()}[gate]
    w1, w2 = layer.cse.fc1.weight.flatten(1), layer.cse.fc2.weight.flatten(1)
    z = (x.mean((2, 3)) @ w1.T + layer.cse.fc1.bias).relu() @ w2.T + layer.cse.fc2.bias
    q = torch.einsum('nchw,c->nhw', x, layer.sse.conv.weight.flatten()) + layer.sse.conv.bias
    expected = x * act(z)[:, :, None, None] + x * act(q)[:, None]
    assert relative_error(layer(x), expected) < 1e-14


def test_reduction_is_the_papers_two():
    assert ConcurrentSqueezeExcite(64).cse.fc1.out_channels == 32
    assert ConcurrentSqueezeExcite(64, rd_ratio=1 / 16, rd_divisor=8).cse.fc1.out_channels == 8


def test_parts_have_their_options():
    layer = ConcurrentSqueezeExcite(8, bias=False, act_layer=nn.SiLU, dtype=torch.float64)
    assert [name for name, _ in layer.named_parameters()] == ['cse.fc1.weight', 'cse.fc2.weight', 'sse.conv.weight']
    assert isinstance(layer.cse.act, nn.SiLU)
    assert layer.sse.conv.weight.dtype == torch.float64


@pytest.mark.parametrize('layer', [
    lambda: ConcurrentSqueezeExcite(8, init='identity'),
    lambda: SpatialSqueezeExcite(8, gate='double_sigmoid', init='identity'),
])
def test_identity_is_exact_and_learns(layer):
    layer, x = layer(), images(2, 8, 5, 7, dtype=torch.float32)
    assert torch.equal(layer(x), x)
    layer(x).square().sum().backward()
    assert sum(bool(p.grad.abs().max() > 0) for p in layer.parameters()) >= 2


def test_half_gates_are_needed_for_a_sum_that_starts_at_identity():
    with pytest.raises(ValueError, match='needs a gate that is 1/2 at 0, sigmoid or hard_sigmoid, not DoubleSigmoid'):
        ConcurrentSqueezeExcite(8, gate='double_sigmoid', init='identity')
    with pytest.raises(ValueError, match="gate='softmax' is not one of sigmoid"):
        SpatialSqueezeExcite(8, gate='softmax')


@pytest.mark.parametrize('layer', [ConcurrentSqueezeExcite, SpatialSqueezeExcite])
def test_an_unknown_start_is_refused(layer):
    with pytest.raises(ValueError, match="init='identiy' is not one of default, identity"):
        layer(8, init='identiy')
