"""An attention of a user's own, from its registration to what its gates did."""

import json

import pytest
import timm
import torch
from parity import images, randomised, relative_error
from torch import nn

import timm_se_plugin
from timm_se_plugin import AttentionSpec, add_attention, register_attention, remove_attention
from timm_se_plugin.layers import SqueezeExcite
from timm_se_plugin.placement import ATTENTIONS, attention_modules
from timm_se_plugin.weights import write_model


class SimAM(nn.Module):
    """SimAM (arXiv 2106.03357, Figure 3): the energy of each position gates it, without parameters."""

    def __init__(self, channels: int, e_lambda: float = 1e-4, device=None, dtype=None):
        super().__init__()
        if e_lambda <= 0:
            raise ValueError(f'e_lambda={e_lambda} is not positive')
        self.e_lambda = e_lambda
        self.gate = nn.Sigmoid()

    def forward(self, x):
        n = x.shape[2] * x.shape[3] - 1
        d = (x - x.mean((2, 3), keepdim=True)).square()
        v = d.sum((2, 3), keepdim=True) / n
        return x * self.gate(d / (4 * (v + self.e_lambda)) + 0.5)


class LayerScaleGate(nn.Module):
    """A gate of one learned number a channel, 2 * sigmoid(weight), which can start at 1."""

    def __init__(self, channels: int, gate: str = 'sigmoid', device=None, dtype=None):
        super().__init__()
        self.scale = nn.Conv2d(channels, channels, 1, groups=channels, device=device, dtype=dtype)
        self.gate = timm_se_plugin.layers.squeeze_excite.GATES[gate]()

    def forward(self, x):
        return x * self.gate(self.scale(x.mean((2, 3), keepdim=True)))


@pytest.fixture
def registered():
    before = dict(ATTENTIONS)
    register_attention('simam', SimAM, paper='2106.03357')
    register_attention('layerscale', LayerScaleGate, last_layers=('scale',), identity_gate='double_sigmoid')
    yield
    ATTENTIONS.clear()
    ATTENTIONS.update(before)


def test_a_network_with_it_is_built_saved_loaded_and_read(registered, tmp_path):
    model = timm.create_model('test_resnet_plugin', attn='simam', attn_e_lambda=0.1, attn_stages=(2, 3)).eval()
    assert {name: layer.e_lambda for name, layer in attention_modules(model).items()} == {
        'layer2.0.se': 0.1, 'layer3.0.se': 0.1}
    write_model(model, tmp_path)
    saved = json.loads((tmp_path / 'config.json').read_text())['model_args']
    assert (saved['attn'], saved['attn_e_lambda']) == ('simam', 0.1)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert AttentionSpec.of(again) == AttentionSpec('simam', stages=(2, 3), extra={'e_lambda': 0.1})
    x = images(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_its_gates_are_analysed(registered):
    from timm_se_plugin.analysis import gate_statistics
    model = timm.create_model('test_resnet_plugin', attn='simam', num_classes=2)
    batches = [(images(4, 3, 64, 64, dtype=torch.float32), torch.tensor([0, 1, 0, 1]))]
    statistics = gate_statistics(model, batches, ['a', 'b'])
    assert [layer.name for layer in statistics.layers] == [f'layer{stage}.0.se' for stage in (1, 2, 3, 4)]
    assert all(0.5 < float(layer.mean.min()) < 1 for layer in statistics.layers)


class TwoGates(nn.Module):
    """An attention whose gates are not called ``gate``, and one of which has parameters."""

    def __init__(self, channels: int, device=None, dtype=None):
        super().__init__()
        self.weigh = nn.Sequential(nn.Conv2d(channels, channels, 1, device=device, dtype=dtype), nn.Sigmoid())
        self.damp = nn.Sigmoid()

    def forward(self, x):
        z = x.mean((2, 3), keepdim=True)
        return x * self.weigh(z) * self.damp(z)


@pytest.mark.parametrize(('gates', 'names'), [
    (('weigh',), ['layer1.0.se']), (('weigh', 'damp'), ['layer1.0.se.weigh', 'layer1.0.se.damp'])])
def test_the_analysis_reads_the_gates_that_the_registration_names(registered, gates, names):
    from timm_se_plugin.analysis import find_gates
    register_attention('twogates', TwoGates, gates=gates)
    model = timm.create_model('test_resnet_plugin', attn='twogates', attn_stages=1)
    found = find_gates(model)
    assert [gate.name for gate in found] == names
    assert [gate.module for gate in found] == [getattr(model.layer1[0].se, name) for name in gates]


def test_a_trained_network_gains_it_without_a_change_and_loses_it_again(registered):
    model = randomised(timm.create_model('test_resnet')).eval()
    x = images(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
        added = add_attention(model, 'layerscale', init='identity')
        assert relative_error(model(x), expected) < 1e-6
    assert {type(layer.gate).__name__ for layer in added.values()} == {'DoubleSigmoid'}
    model(x).square().sum().backward()
    assert all(layer.scale.weight.grad.abs().max() > 0 for layer in added.values())
    assert remove_attention(model) == added
    plain = timm.create_model('test_resnet_plugin', attn='layerscale', attn_integration='pre', attn_init='identity')
    assert not plain.layer1[0].se.scale.weight.any()


class OwnExcitation(SqueezeExcite):
    """SE whose gate is followed by a factor for each channel, which begins at 1."""

    def __init__(self, channels: int, device=None, dtype=None):
        super().__init__(channels, gate='tanh', device=device, dtype=dtype)
        self.factor = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)

    def forward(self, x):
        return x * (1 + self.factor(self.excite(self.squeeze(x))))


def test_a_layer_derived_from_another_attention_has_the_record_of_its_own_class(registered):
    register_attention('own', OwnExcitation, last_layers=('factor',))
    model = randomised(timm.create_model('test_resnet')).eval()
    x = images(2, 3, 64, 64, dtype=torch.float32)
    expected = model(x)
    add_attention(model, 'own', init='identity')
    torch.testing.assert_close(model(x), expected)
    assert model.layer1[0].se.fc2.weight.any()


class Misnamed(LayerScaleGate):
    """A layer whose registration is wrong."""


def test_a_class_that_is_defined_again_takes_the_place_of_the_former_one(registered):
    again = type('SimAM', (SimAM,), {'__module__': SimAM.__module__, '__qualname__': SimAM.__qualname__})
    register_attention('simam', again, paper='2106.03357')
    model = timm.create_model('test_resnet_plugin', attn='simam', attn_stages=1)
    assert [type(layer) for layer in attention_modules(model).values()] == [again]
    with pytest.raises(ValueError, match="'simam' cannot name an attention"):
        register_attention('simam', LayerScaleGate)
    with pytest.raises(ValueError, match="'se' cannot name an attention"):
        register_attention('se', SqueezeExcite)


@pytest.mark.parametrize('name', ['absent', 'gate'])
def test_a_last_layer_that_cannot_be_zeroed_is_one_clear_error(registered, name):
    register_attention('own', Misnamed, last_layers=(name,), identity_gate='double_sigmoid')
    with pytest.raises(ValueError, match=f"zeroes '{name}', which last_layers= of 'own' names, but a Misnamed"):
        add_attention(timm.create_model('test_resnet'), 'own', init='identity')


def test_its_options_are_checked_as_any_other(registered):
    with pytest.raises(ValueError, match=r"attn='simam' has no option attn_lambda \(did you mean attn_e_lambda\?\)"):
        timm.create_model('test_resnet_plugin', attn='simam', attn_lambda=1)
    with pytest.raises(ValueError, match='e_lambda=-1 is not positive'):
        timm.create_model('test_resnet_plugin', attn='simam', attn_e_lambda=-1)
    with pytest.raises(ValueError, match="attn='simam' has no option attn_init"):
        AttentionSpec('simam', init='identity')


def test_a_saved_network_asks_for_its_registration(registered, tmp_path):
    write_model(timm.create_model('test_resnet_plugin', attn='simam'), tmp_path)
    del ATTENTIONS['simam']
    with pytest.raises(ValueError, match=r"attn='simam' is not a known attention; .* register your own with"):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True)


class Nested(nn.Module):
    """An attention with an option that JSON changes: tuples inside a tuple."""

    def __init__(self, channels, sizes=((1, 2), (3, 4)), device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1, device=device, dtype=dtype))

    def forward(self, x):
        return x * self.weight


def test_a_network_takes_its_own_weights_whatever_its_options_are(registered):
    register_attention('nested', Nested)
    model = timm.create_model('test_resnet_plugin', attn='nested')
    model.load_state_dict(model.state_dict())
    other = timm.create_model('test_resnet_plugin', attn='nested', attn_sizes=((1, 2), (3, 5)))
    with pytest.raises(ValueError, match='another attention than that of this network: attn_sizes='):
        model.load_state_dict(other.state_dict())


class OwnDefaults(nn.Module):
    """An attention whose keywords are those of others, with other defaults."""

    def __init__(self, channels, groups: int = 4, bias: bool = False, act_layer=nn.SiLU, rd_divisor: int = 8,
                 rd_channels: int | None = 12, rd_ratio: float = 0.25, squeeze: str = 'max', device=None, dtype=None):
        super().__init__()
        self.given = (groups, bias, act_layer, rd_divisor, rd_channels, rd_ratio, squeeze)

    def forward(self, x):
        return x


def test_a_layer_keeps_the_defaults_of_keywords_that_others_have_too(registered, tmp_path):
    register_attention('own', OwnDefaults)
    kwargs = {'attn': 'own', 'attn_stages': 1}
    model = timm.create_model('test_resnet_plugin', **kwargs)
    assert model.layer1[0].se.given == (4, False, nn.SiLU, 8, 12, 0.25, 'max')
    write_model(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert again.layer1[0].se.given == model.layer1[0].se.given
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    again.load_state_dict(torch.load(tmp_path / 'weights.pth', weights_only=True))
    model = timm.create_model('test_resnet_plugin', attn_groups=2, attn_bias=True, attn_act_layer='gelu', **kwargs)
    assert model.layer1[0].se.given == (2, True, timm.layers.get_act_layer('gelu'), 8, 12, 0.25, 'max')


class Normalised(nn.Module):
    """An attention with an option that JSON cannot write."""

    def __init__(self, channels, norm_layer=nn.BatchNorm2d, device=None, dtype=None):
        super().__init__()
        self.norm = norm_layer(channels, device=device, dtype=dtype)

    def forward(self, x):
        return self.norm(x)


def test_weights_are_saved_and_loaded_where_an_option_is_a_class(registered, tmp_path):
    register_attention('own', Normalised)
    model = timm.create_model('test_resnet_plugin', attn='own')
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    model.load_state_dict(torch.load(tmp_path / 'weights.pth', weights_only=True))


class Sizes(nn.Module):
    """An attention with options of several values."""

    def __init__(self, channels, sizes=(3, 5), widths=[8], shifts=None, device=None, dtype=None):  # noqa: B006
        super().__init__()
        self.given = sizes, widths, shifts

    def forward(self, x):
        return x


@pytest.mark.parametrize('kwargs', [
    {}, {'attn_sizes': (7, 9), 'attn_widths': [4, 4], 'attn_shifts': (1, 2)},
    {'attn_sizes': [7, 9], 'attn_widths': (4, 4), 'attn_shifts': [1, 2]}])
def test_options_of_several_values_come_back_from_a_saved_network(registered, kwargs, tmp_path):
    register_attention('sizes', Sizes)
    model = timm.create_model('test_resnet_plugin', attn='sizes', **kwargs)
    write_model(model, tmp_path)
    for asked in ({}, {'attn': 'sizes', **kwargs}):
        again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, **asked)
        assert again.layer1[0].se.given == model.layer1[0].se.given
        assert AttentionSpec.of(again) == AttentionSpec.of(model)


class DeepGate(nn.Module):
    """A gate made of several layers, as papers often write it, that begins with the weights of its own choice."""

    def __init__(self, channels, end, device, dtype):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1, bias=False, device=device, dtype=dtype), end())
        nn.init.zeros_(self.gate[1].weight)

    def forward(self, x):
        return x * self.gate(x)


class ForMaps(nn.Module):
    def forward(self, x):
        assert x.ndim == 4
        return x.sigmoid()


@pytest.mark.parametrize(('end', 'last'), [(nn.Sigmoid, 0), (nn.Softmax2d, 0), (ForMaps, 0), (nn.Tanh, 1)])
def test_a_gate_may_have_several_layers_and_begins_as_its_class_says(registered, end, last):
    # After norms that begin at 0, a branch whose gate is 0 too would never learn.
    class Deep(DeepGate):
        def __init__(self, channels, device=None, dtype=None):
            super().__init__(channels, end, device, dtype)
    register_attention('deep', Deep, tags='deep-gate', gates='gate')
    model = timm.create_model('resnet18_plugin', attn='deep')
    assert all(not layer.gate[1].weight.any() for layer in attention_modules(model).values())
    assert float(model.layer1[0].bn2.weight.detach().mean()) == last
    assert (ATTENTIONS['deep'].tags, ATTENTIONS['deep'].gates) == (('deep-gate',), ('gate',))


class NeedsMore(nn.Module):
    def __init__(self, channels, groups, device=None, dtype=None): ...


class HasNoFactory(nn.Module):
    def __init__(self, channels): ...


class HasStages(nn.Module):
    def __init__(self, channels, stages=2, device=None, dtype=None): ...


@pytest.mark.parametrize(('name', 'layer', 'message'), [
    ('se', SimAM, "'se' cannot name an attention: choose a lower-case word other than se, sk"),
    ('none', SimAM, "'none' cannot name an attention"),
    ('Sim-AM', SimAM, "'Sim-AM' cannot name an attention"),
    ('mine', lambda channels, device=None, dtype=None: SimAM(channels), 'not a class derived from torch.nn.Module'),
    ('mine', NeedsMore, 'NeedsMore cannot be an attention: its constructor has no default for groups; it is called as'),
    ('mine', HasNoFactory, 'HasNoFactory cannot be an attention: its constructor lacks device, dtype'),
    ('mine', HasStages, 'HasStages cannot be an attention: its keyword stages is the name of another option')])
def test_what_cannot_be_registered_is_one_clear_error(name, layer, message):
    before = dict(ATTENTIONS)
    with pytest.raises(ValueError, match=message):
        register_attention(name, layer)
    assert before == ATTENTIONS
