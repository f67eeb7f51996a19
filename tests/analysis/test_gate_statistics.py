import copy
import csv
import logging
import math
import re

import pytest
import timm
import torch
from gate_worker import save_statistics
from parity import images, randomised
from processes import finish, start_group
from torch import nn

import timm_se_plugin
from timm_se_plugin.analysis import GateStatistics, LayerStatistics, find_gates, gate_statistics, observed
from timm_se_plugin.placement import ATTENTIONS


class Attention(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True))


class Known(nn.Module):
    """A network whose gates are a function of constant images."""

    def __init__(self, gate=None):
        super().__init__()
        self.attention = Attention(gate or nn.ReLU())
        self.head = nn.Linear(1, 2, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.attention(x).mean((2, 3)))


def constant(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 2, 2)


def of_known(values, labels, gate=None, classes='ab'):
    return gate_statistics(Known(gate), [(constant(*values), torch.tensor(labels))], classes).layers[0]


def network(name='se_test_resnet_plugin', **kwargs):
    return randomised(timm.create_model(name, num_classes=3, **kwargs)).double()


def batches(count=13, size=4, side=32):
    x, y = images(count, 3, side, side, seed=1), torch.arange(count) % 3
    return list(zip(x.split(size), y.split(size), strict=True))


def assert_equal(one, two, tolerance=1e-12):
    assert [layer.name for layer in one.layers] == [layer.name for layer in two.layers]
    for a, b in zip(one.layers, two.layers, strict=True):
        for field in ('counts', 'means', 'variances', 'lows', 'highs'):
            torch.testing.assert_close(getattr(a, field), getattr(b, field), rtol=tolerance, atol=tolerance)


def test_known_gates_give_the_statistics_worked_by_hand():
    layer = of_known([1, 5, 3, 9], [0, 1, 0, 1])
    assert layer.counts.tolist() == [2, 2]
    assert layer.means.flatten().tolist() == [2, 7]
    assert layer.variances.flatten().tolist() == [1, 4]
    assert layer.mean.item() == 4.5
    assert layer.between.item() == 6.25      # of 2 and 7 around 4.5
    assert layer.within.item() == 2.5        # of 1 and 4
    assert layer.std.item() == pytest.approx(math.sqrt(8.75))  # 3.5², 0.5², 1.5², 4.5², a quarter of each
    assert layer.specificity == 2.5
    assert layer.chance == 0.5               # (2 - 1) / (4 - 2)


def test_a_layer_has_a_row_for_each_branch():
    counts, ones = torch.tensor([1, 1]), torch.ones(2, 2, 2, dtype=torch.float64)
    means = torch.tensor([[[0.25, 0.5], [0.75, 0.5]], [[0.75, 0.5], [0.25, 0.5]]], dtype=torch.float64)
    layer = LayerStatistics('l', 'Softmax', 's', ('3x3', '5x5'), counts, means + ones * 0.5, 0 * ones, ones, 0 * ones)
    first, second = GateStatistics((layer,), ('a', 'b')).layer_rows()
    assert (first['branch'], second['branch'], first['channels'], first['images']) == ('3x3', '5x5', 2, 2)
    assert (first['mean'], first['std'], first['channel_std']) == (1, 0.125, 0)  # 0.25 and 0 in the two channels
    assert (first['low'], first['high'], first['specificity']) == (1, 0, math.inf)


def test_classes_weigh_as_much_as_they_have_images():
    layer = of_known([1, 1, 1, 5], [0, 0, 0, 1])
    assert (layer.mean.item(), layer.between.item(), layer.within.item()) == (2, 3, 0)
    assert layer.specificity == math.inf
    assert of_known([1, 1], [0, 1]).specificity == 0
    # The mean of equal numbers is rounded.
    assert of_known([0.9513] * 21, [0] * 3 + [1] * 7 + [2] * 11, classes='abc').specificity == 0


@pytest.mark.parametrize(('gate', 'values', 'shares'), [
    (nn.Hardsigmoid(), [-3, 0, 3, 3], (0.25, 0.5)),
    (nn.Hardsigmoid(), [-2.82, -2.58, 0, 3], (0.25, 0.25)),  # 0.03 and 0.07
    (nn.Tanh(), [-9, 0, 9, 9], (0.25, 0.5)),
    (timm_se_plugin.layers.squeeze_excite.DoubleSigmoid(), [-9, 3, 9, 9], (0.25, 0.75)),  # 2 * sigmoid(3) = 1.905
])
def test_saturation_is_the_share_near_an_end_of_the_gates_range(gate, values, shares):
    assert of_known(values, [0, 1, 0, 1], gate).saturation == shares


def test_a_gate_without_ends_has_no_saturation():
    assert all(math.isnan(share) for share in of_known([1, 2], [0, 1]).saturation)


@pytest.mark.parametrize('name', ['se_test_resnet_plugin', 'sk_test_resnet_plugin', 'mobilenetv3_small_050'])
def test_streaming_equals_two_passes(name):
    model = network(name)
    data = batches()
    seen = {}
    gates = find_gates(model)
    with observed(model, gates, lambda gate, values: seen.setdefault(gate.name, []).append(values.clone())):
        for x, _ in data:
            model(x)
    y = torch.cat([y for _, y in data])
    for layer in gate_statistics(model, data, 'abc').layers:
        values = torch.cat(seen[layer.name]).mean(3)
        for k in range(3):
            mine = values[y == k]
            torch.testing.assert_close(layer.means[k], mine.mean(0), rtol=1e-12, atol=0)
            torch.testing.assert_close(layer.variances[k], mine.var(0, correction=0), rtol=1e-10, atol=1e-18)
        torch.testing.assert_close(layer.std, values.std(0, correction=0), rtol=1e-10, atol=1e-12)


def test_a_small_deviation_beside_a_large_mean_keeps_its_digits():
    values = [1e8 + 1, 1e8 - 1]
    layer = gate_statistics(Known(), [(constant(v), torch.tensor([0])) for v in values * 50], 'a').layers[0]
    assert layer.variances.item() == pytest.approx(1, rel=1e-9)  # E[x²] - E[x]² gives 0 or 2


def test_a_spatial_gate_counts_as_its_mean_over_the_map():
    model = network(attn_squeeze='none')
    data = batches()
    seen = []
    gate = find_gates(model)[0]
    with observed(model, [gate], lambda _, values: seen.append(values.clone())):
        model(data[0][0])
    assert seen[0].shape[3] > 1
    layer = gate_statistics(model, data[:1], 'abc').layers[0]
    torch.testing.assert_close(layer.mean, seen[0].mean((0, 3)), rtol=1e-12, atol=0)


def test_fused_plain_and_deployed_networks_have_equal_statistics():
    for name in ('se_test_resnet_plugin', 'sk_test_resnet_plugin', 'se_resnet18_plugin'):
        plain = network(name, attn_fused=False).eval()
        fused = network(name).eval()
        fused.load_state_dict(plain.state_dict())
        expected = gate_statistics(plain, batches(6), 'abc')
        assert_equal(gate_statistics(fused, batches(6), 'abc'), expected)
        assert_equal(gate_statistics(timm_se_plugin.fuse_for_inference(plain), batches(6), 'abc'), expected, 1e-9)


@pytest.mark.parametrize('in_place', [False, True])
def test_a_network_that_ran_compiled_has_the_statistics_of_the_network(in_place):
    model = network().eval()
    expected = gate_statistics(model, batches(4), 'abc')
    compiled = copy.deepcopy(model)
    if in_place:
        compiled.compile(backend='eager')
    else:
        compiled = torch.compile(compiled, backend='eager')
    with torch.no_grad():
        compiled(batches(4)[0][0])
    for layer, other in zip(expected.layers, gate_statistics(compiled, batches(4), 'abc').layers, strict=True):
        torch.testing.assert_close(other.means, layer.means, rtol=1e-12, atol=0)
        assert other.name == layer.name


def test_observation_does_not_switch_the_fused_tail_off(monkeypatch):
    from timm_se_plugin.placement import residual
    model, calls = network(), []
    tail = residual.residual_tail
    monkeypatch.setattr(residual, 'residual_tail', lambda *args, **kwargs: calls.append(1) or tail(*args, **kwargs))
    gate_statistics(model, batches(2), 'abc')
    assert len(calls) == 4


@pytest.mark.parametrize('fails', [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = network().train()
    model.layer1.eval()
    x = images(2, 3, 32, 32)
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    labels = torch.tensor([0, 9 if fails else 1])
    if fails:
        with pytest.raises(ValueError, match='label 9'):
            gate_statistics(model, [(x, labels)], 'abc')
    else:
        gate_statistics(model, [(x, labels)], 'abc')
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model(x).requires_grad


@pytest.mark.parametrize(('name', 'count', 'last', 'stages'), [
    ('mobilenetv3_small_050', 9, 'blocks.4.2.se', 4), ('efficientnet_b0', 16, 'blocks.6.0.se', 7),
    ('regnety_002', 13, 's4.b7.se', 4), ('seresnet18', 8, 'layer4.1.se', 4),
    ('legacy_seresnet18', 8, 'layer4.1.se_module', 4), ('skresnet18', 8, 'layer4.1.conv1.attn', 4),
    ('ese_vovnet19b_dw', 4, 'stages.3.blocks.0.attn', 4), ('eca_resnet33ts', 10, 'stages.3.1.attn', 4),
    ('sk_shufflenetv2_050_plugin', 16, 'stage4.3.branch2.3.attn', 3),
])
def test_attentions_of_timm_and_others_are_found_by_depth_and_stage(name, count, last, stages):
    model = timm.create_model(name, device='meta')
    gates = find_gates(model)
    assert (len(gates), gates[-1].name, len({gate.stage for gate in gates})) == (count, last, stages)


@pytest.mark.parametrize('attn', ATTENTIONS)
def test_every_attention_of_the_plugin_has_gates_in_every_block(attn):
    gates = find_gates(timm.create_model('resnet18_plugin', attn=attn, device='meta'))
    assert len({re.match(r'layer\d\.\d', gate.name)[0] for gate in gates}) == 8


def test_gates_of_channels_last_and_one_dimensional_attentions_are_read_by_channel():
    from timm.layers import EcaModule
    from timm.layers.squeeze_excite import SqueezeExciteCl
    seen = []
    for attention, x in ((SqueezeExciteCl(8), torch.rand(2, 3, 5, 8)), (EcaModule(8), torch.rand(2, 8, 3, 5))):
        with observed(attention, find_gates(attention), lambda _, values: seen.append(values)):
            out = attention(x)
        gates = (out / x).reshape(2, -1, 8)[:, 0] if x.shape[-1] == 8 else (out / x)[:, :, 0, 0]
        torch.testing.assert_close(seen.pop(), gates[:, None, :, None])


def test_the_weights_of_branches_sum_to_one_and_are_called_by_their_kernels():
    layer = gate_statistics(network('sk_test_resnet_plugin', attn_kernels=(3, 5, 7)), batches(4), 'abc').layers[0]
    assert layer.branches == ('3x3', '5x5', '7x7')
    torch.testing.assert_close(layer.mean.sum(0), torch.ones(layer.mean.shape[1], dtype=torch.float64))


@pytest.mark.parametrize('shares', [([0, 1, 2, 3, 4], [5, 6]), ([], list(range(7)))], ids=['uneven', 'one'])
def test_two_processes_have_the_statistics_of_one(shares, tmp_path):
    processes = start_group(save_statistics, *((tmp_path, mine) for mine in shares))
    assert [finish(process) for process in processes] == [0, 0]
    model = network('sk_test_resnet_plugin')
    x, y = images(7, 3, 32, 32, seed=3), torch.tensor([0, 1, 2, 0, 1, 0, 0])
    alone = gate_statistics(model, [(x, y)], 'abc')
    for rank in range(2):
        for layer, together in zip(alone.layers, torch.load(tmp_path / f'{rank}.pt'), strict=True):
            for field in ('counts', 'means', 'variances', 'lows', 'highs'):
                torch.testing.assert_close(together[field], getattr(layer, field), rtol=1e-9, atol=1e-12)


def test_the_table_is_tidy_and_leaves_out_classes_without_images(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        result = gate_statistics(Known(), [(constant(1, 5, 3), torch.tensor([0, 2, 0]))], ['cat', 'dog', 'owl'])
    assert 'classes without images have no statistics: dog' in caplog.text
    result.save(tmp_path / 'new' / 'gates.csv')
    rows = list(csv.DictReader((tmp_path / 'new' / 'gates.csv').read_text().splitlines()))
    assert [(row['layer'], row['class'], row['images'], row['channel'], row['mean'], row['std']) for row in rows] == [
        ('attention', 'cat', '2', '0', '2.0', '1.0'), ('attention', 'owl', '1', '0', '5.0', '0.0')]
    with pytest.raises(ValueError, match="'dog' has no images; classes with images: cat, owl"):
        result.class_index('dog')
    with pytest.raises(ValueError, match="no class is called 'bat'"):
        result.class_index('bat')
    with pytest.raises(ValueError, match="no attention is called 'nothing'; the statistics have attention"):
        result.layer('nothing')
    with pytest.raises(ValueError, match=r'\.csv or \.parquet'):
        result.save(tmp_path / 'gates.txt')


def test_an_interruption_leaves_the_former_table(tmp_path, monkeypatch):
    result = gate_statistics(Known(), [(constant(1, 2), torch.tensor([0, 1]))], 'ab')
    result.save(tmp_path / 'gates.csv')
    before = (tmp_path / 'gates.csv').read_text()
    rows = list(result.rows())

    def interrupted(self):
        yield rows[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(type(result), 'rows', interrupted)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / 'gates.csv')
    assert (tmp_path / 'gates.csv').read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ['gates.csv']


def test_parquet_holds_the_same_table(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet', reason='pyarrow, which is optional, is not installed')
    result = gate_statistics(Known(nn.Hardsigmoid()), [(constant(1, 2), torch.tensor([0, 1]))], 'ab')
    result.save(tmp_path / 'gates.parquet')
    assert parquet.read_table(tmp_path / 'gates.parquet').to_pylist() == list(result.rows())


def test_chance_is_the_specificity_of_gates_that_ignore_the_class():
    values = torch.rand(1020, generator=torch.Generator().manual_seed(0)).tolist()
    layer = of_known(values, [i % 102 for i in range(1020)], classes=[str(i) for i in range(103)])
    assert layer.chance == pytest.approx(101 / 918)
    assert layer.specificity == pytest.approx(layer.chance, rel=0.3)
    assert math.isnan(of_known([1, 2], [0, 1]).chance)


def test_images_without_a_label_are_left_out():
    assert of_known([1, 100, 3], [0, -1, 0], classes='a').means.item() == 2


def test_wrong_data_and_networks_are_refused():
    with pytest.raises(ValueError, match='ResNet has no attention with a gate'):
        find_gates(timm.create_model('test_resnet', device='meta'))
    with pytest.raises(ValueError, match='the data set has no image with a label'):
        gate_statistics(Known(), [], 'ab')
    with pytest.raises(ValueError, match='the data set has no image with a label'):
        gate_statistics(Known(), [(constant(1), torch.tensor([-1]))], 'ab')
    for soft in (torch.eye(2), torch.tensor([0.0, 1.0])):  # of mixup, and of a regression
        with pytest.raises(ValueError, match=r'labels of shape \(2.*\) and torch.float32 are not one class index for'):
            gate_statistics(Known(), [(constant(1, 2), soft)], 'ab')
    assert gate_statistics(Known(), [(constant(1, 2), torch.tensor([0, 1], dtype=torch.uint8))], 'ab').images == 2
    data = [(constant(1, 2), torch.tensor([0, 1])), (constant(3, math.nan), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match='the gate of attention is NaN or infinite for image 3 of this process'):
        gate_statistics(Known(), data, 'ab')
    twice = Known()
    twice.forward = lambda x: twice.head(twice.attention(twice.attention(x)).mean((2, 3)))
    with pytest.raises(ValueError, match='attention computes its gate more than once'):
        gate_statistics(twice, data[:1], 'ab')
    model = timm.create_model('gcresnet33ts', num_classes=2)  # its GlobalContext adds, and never calls its gate
    with pytest.raises(ValueError, match='did not compute the gates of'):
        gate_statistics(model, [(torch.rand(1, 3, 64, 64), torch.tensor([0]))], 'ab')
