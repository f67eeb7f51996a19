"""The plugin's networks compute what timm's do: outputs, every gradient and running statistics, in float64."""

import pytest
import timm
import torch
from networks import few_layers, resnets
from parity import assert_same_network, gradients, images, randomised, relative_error, saved
from torch import nn

from timm_se_plugin.models._published import legacy_keys, sk_keys
from timm_se_plugin.models._registry import architectures

# Plugin name and options -> timm's network; timm rounds the inner width to a multiple of 8.
TIMM_SE = [
    ('se_resnet18_plugin', {'attn_rd_divisor': 8}, 'seresnet18'),
    ('se_resnet34_plugin', {'attn_rd_divisor': 8}, 'seresnet34'),
    ('se_resnet50_plugin', {}, 'seresnet50'),
    ('se_resnet101_plugin', {}, 'seresnet101'),
    ('se_resnet152_plugin', {}, 'seresnet152'),
    ('se_resnet50t_plugin', {}, 'seresnet50t'),
    ('se_resnet152d_plugin', {}, 'seresnet152d'),
    ('seresnext26d_32x4d_plugin', {'attn': 'se'}, 'seresnext26d_32x4d'),
    ('se_resnext50_32x4d_plugin', {}, 'seresnext50_32x4d'),
    ('se_resnext101_32x8d_plugin', {}, 'seresnext101_32x8d'),
    ('seresnextaa101d_32x8d_plugin', {'attn': 'se'}, 'seresnextaa101d_32x8d'),
    ('senet154_plugin', {'attn': 'se'}, 'senet154'),
    ('ecaresnet26t_plugin', {'attn': 'eca'}, 'ecaresnet26t'),
    ('resnetrs50_plugin', {'attn': 'se', 'attn_rd_ratio': 0.25, 'attn_rd_divisor': 8}, 'resnetrs50'),
]
DEEP = ('seresnet101', 'seresnet152', 'seresnet152d', 'seresnext101_32x8d', 'seresnextaa101d_32x8d', 'senet154')
SIZES = [(64, 64), (65, 97)]
sizes = pytest.mark.parametrize('size', [pytest.param((64, 64), marks=pytest.mark.slow), (65, 97)])
NARROW = {'channels': (32, 64, 128, 256)}
SMALL = pytest.mark.parametrize(
    'small', [{'layers': (2, 1, 1, 1), **NARROW}, pytest.param({}, marks=pytest.mark.slow)], ids=['small', 'whole'])


SEEDED = [
    ('se_resnet18_plugin', {'attn_rd_divisor': 8}, 'seresnet18', {'drop_path_rate': 0.3}),
    ('se_resnet18_plugin', {'attn_rd_divisor': 8}, 'seresnet18', {'drop_block_rate': 0.3}),
    ('se_resnet50_plugin', {}, 'seresnet50', {'drop_path_rate': 0.3, 'drop_block_rate': 0.3}),
    ('se_resnetaa50d_plugin', {}, 'seresnetaa50d', {}),
    ('seresnextaa101d_32x8d_plugin', {'attn': 'se'}, 'seresnextaa101d_32x8d', {'act_layer': 'silu'}),
]


@pytest.mark.parametrize(('name', 'options', 'timm_name', 'kwargs'), SEEDED)
def test_matches_timm_with_regularisation_and_anti_aliasing(name, options, timm_name, kwargs):
    kwargs = {'layers': (1, 1, 2, 1), 'num_classes': 10, **kwargs}
    reference = randomised(timm.create_model(timm_name, **kwargs)).double().train()
    model = timm.create_model(name, **options, **kwargs).double().train()
    model.load_state_dict(reference.state_dict())
    outputs = []
    for network in (model, reference):
        torch.manual_seed(0)
        outputs.append(network(images(4, 3, 64, 64)))
    assert relative_error(*outputs) < 1e-10


def slow_if_deep(*values):
    return pytest.param(*values, marks=[pytest.mark.slow] if values[-1] in DEEP else [])


@sizes
@SMALL
@pytest.mark.parametrize(('name', 'options', 'timm_name'), [slow_if_deep(*case) for case in TIMM_SE])
def test_matches_timms_se_network_in_float64(name, options, timm_name, small, size):
    reference = randomised(timm.create_model(timm_name, num_classes=10, **small))
    model = timm.create_model(name, num_classes=10, **small, **options)
    model.load_state_dict(reference.state_dict())
    assert_same_network(model, reference, images(2, 3, *size))


@pytest.mark.parametrize(('name', 'timm_name'), [
    ('se_resnet50_plugin.a1_in1k', 'seresnet50'),
    ('se_resnext50_32x4d_plugin.racm_in1k', 'seresnext50_32x4d'),
    ('seresnext26d_32x4d_plugin.bt_in1k', 'seresnext26d_32x4d'),
    pytest.param('senet154_plugin.gluon_in1k', 'senet154', marks=pytest.mark.slow),
])
def test_published_weights_compute_the_same(name, timm_name, tmp_path):
    reference = randomised(timm.create_model(timm_name)).eval()
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=saved(reference, tmp_path)).eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model.double()(x), reference.double()(x)) < 1e-10


TIMM_SK = [
    ('sk_resnet18_plugin', {'attn_split_input': True, 'attn_rd_ratio': 1 / 8, 'attn_rd_divisor': 16}, 'skresnet18'),
    ('sk_resnet34_plugin', {'attn_split_input': True, 'attn_rd_ratio': 1 / 8, 'attn_rd_divisor': 16}, 'skresnet34'),
    ('sk_resnet50_plugin', {'attn_split_input': True, 'attn_rd_divisor': 8}, 'skresnet50'),
    ('sk_resnet50d_plugin', {'attn_split_input': True, 'attn_rd_divisor': 8}, 'skresnet50d'),
    ('sk_resnext50_32x4d_plugin', {}, 'skresnext50_32x4d'),
]


@pytest.mark.parametrize('fused', ['auto', False])
@sizes
@pytest.mark.parametrize(('name', 'options', 'timm_name'), TIMM_SK)
def test_matches_timms_sk_network_in_float64(name, options, timm_name, size, fused):
    reference = randomised(timm.create_model(timm_name, num_classes=10, layers=(2, 1, 1, 2), **NARROW))
    model = timm.create_model(name, num_classes=10, layers=(2, 1, 1, 2), attn_fused=fused, **NARROW, **options)
    model.load_state_dict(sk_keys(reference.state_dict()))
    assert_same_network(model, reference, images(2, 3, *size), key_map=sk_keys)


def test_se_and_sk_together_match_timm_in_float64():
    layers = {'layers': (1, 1, 1, 1), 'num_classes': 10}
    sk_kwargs = {'rd_ratio': 1 / 16, 'rd_divisor': 32, 'split_input': False}
    reference = randomised(timm.create_model(
        'skresnext50_32x4d', block_args={'sk_kwargs': sk_kwargs, 'attn_layer': 'se'}, **layers))
    model = timm.create_model('resnext50_32x4d_plugin', attn='sk+se', **layers)
    model.load_state_dict(sk_keys(reference.state_dict()))
    assert_same_network(model, reference, images(2, 3, 64, 64), key_map=sk_keys)


@pytest.mark.parametrize('name', ['skresnet18', 'skresnet34', 'skresnext50_32x4d'])
def test_published_sk_weights_compute_the_same(name, tmp_path):
    reference = randomised(timm.create_model(name)).eval()
    model = timm.create_model(
        f'{name.replace("skres", "sk_res")}_plugin.ra_in1k', pretrained=True,
        pretrained_cfg_overlay=saved(reference, tmp_path)).eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(model.double()(x), reference.double()(x)) < 1e-10


LEGACY = [name for name in architectures if name.startswith('legacy_se')]


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] if any(d in name for d in ('26', '34', '101', '152', '154')) else [])
    for name in LEGACY])
@pytest.mark.parametrize('layers', [
    {'layers': (2, 1, 1, 1)}, pytest.param({}, marks=pytest.mark.slow)], ids=['shallow', 'whole'])
def test_matches_timms_legacy_network_in_float64(name, layers, tmp_path):
    """Their keys, their stem's pooling, their strides: loaded as a published file would be."""
    reference = randomised(timm.create_model(name.removesuffix('_plugin'), drop_rate=0., **layers))
    overlay = saved(reference, tmp_path)
    model = timm.create_model(f'{name}.in1k', pretrained=True, pretrained_cfg_overlay=overlay, drop_rate=0., **layers)
    for size in [SIZES[1], (72, 50)]:
        assert_same_network(model, reference, images(2, 3, *size), key_map=legacy_keys)


@pytest.mark.parametrize('name', ['legacy_seresnet18', 'legacy_seresnet50'])
def test_a_legacy_network_without_attention_is_timms_without_its_own(name):
    """timm's blocks add the shortcut in place, even where a ReLU ends the branch, as in Caffe's ResNet-18."""
    options = {'layers': (2, 1, 1, 1), 'drop_rate': 0.}
    reference = randomised(timm.create_model(name, **options))
    for block in [module for module in reference.modules() if hasattr(module, 'se_module')]:
        block.se_module = nn.Identity()
    model = timm.create_model(f'{name}_plugin', attn='none', **options)
    model.load_state_dict(legacy_keys(reference.state_dict()))
    assert_same_network(model, reference, images(2, 3, 72, 50), key_map=legacy_keys)
    torch.jit.script(model.train())(torch.zeros(2, 3, 64, 64)).sum().backward()
    exported = torch.export.export(model.eval(), (torch.zeros(1, 3, 64, 64),))
    assert 'where' not in str(exported.graph)


@pytest.mark.parametrize('name', [
    name if sum(c.isdigit() for c in name) < 3 else pytest.param(name, marks=pytest.mark.slow)
    for name in resnets()
    if architectures[name].accepts_attn and name not in LEGACY and timm.is_model(architectures[name].base)])
def test_without_a_flag_the_network_is_timms(name):
    layers = few_layers(name)
    reference = randomised(timm.create_model(name.removesuffix('_plugin'), **layers)).eval()
    model = timm.create_model(name, **layers).eval()
    assert list(model.state_dict()) == list(reference.state_dict())
    model.load_state_dict(reference.state_dict())
    x = images(1, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(x), reference(x))


@pytest.mark.parametrize('integration', ['standard', 'pre', 'post', 'identity', '3x3'])
@pytest.mark.parametrize('base', ['test_resnet', 'resnet26d'])
def test_gates_of_one_leave_the_plain_network(base, integration):
    """At identity initialisation no place of the attention changes what the network computes."""
    plain = randomised(timm.create_model(base)).eval()
    model = timm.create_model(f'{base}_plugin', attn='se', attn_integration=integration, attn_init='identity').eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    x = images(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)


class LiteralBasicBlock(torch.nn.Module):
    """The same places in a block of two 3x3 convolutions; inside the unit, the attention follows the first."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        b = self.block
        attend = b.se
        place = b.integration

        def residual(x):
            x = b.bn1(b.conv1(x))
            x = attend(x) if place == '3x3' else x
            return b.bn2(b.conv2(torch.relu(x)))

        shortcut = b.downsample(x) if b.downsample is not None else x
        unit = residual(attend(x) if place == 'pre' else x)
        unit = attend(unit) if place == 'standard' else unit
        shortcut = attend(shortcut) if place == 'identity' else shortcut
        out = torch.relu(unit + shortcut)
        return attend(out) if place == 'post' else out


class LiteralBottleneck(torch.nn.Module):
    """SE paper, Figure 5, written out: R is the residual branch, A the attention, I the shortcut."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        b = self.block
        attend = b.se
        place = b.integration

        def residual(x):
            x = b.act1(b.bn1(b.conv1(x)))
            x = b.bn2(b.conv2(x))
            x = attend(x) if place == '3x3' else x
            return b.bn3(b.conv3(b.act2(x)))

        shortcut = b.downsample(x) if b.downsample is not None else x
        if place == 'standard':
            return torch.relu(attend(residual(x)) + shortcut)
        if place == 'pre':
            return torch.relu(residual(attend(x)) + shortcut)
        if place == 'post':
            return attend(torch.relu(residual(x) + shortcut))
        if place == 'identity':
            return torch.relu(residual(x) + attend(shortcut))
        return torch.relu(residual(x) + shortcut)


@pytest.mark.parametrize('training', [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize('integration', ['standard', 'pre', 'post', 'identity', '3x3'])
@pytest.mark.parametrize(('name', 'literal_block'), [
    ('se_resnet26_plugin', LiteralBottleneck), ('se_resnet18_plugin', LiteralBasicBlock)])
def test_place_is_the_papers(name, literal_block, integration, training):
    model = randomised(timm.create_model(name, attn_integration=integration, **NARROW))
    literal = timm.create_model(name, attn_integration=integration, **NARROW)
    literal.load_state_dict(model.state_dict())
    for layer in (literal.layer1, literal.layer2, literal.layer3, literal.layer4):
        for i, block in enumerate(layer):
            layer[i] = literal_block(block)
    model, literal = model.double().train(training), literal.double().train(training)
    out, grads = gradients(model, images(2, 3, 65, 64))
    expected_out, expected = gradients(literal, images(2, 3, 65, 64))
    assert relative_error(out, expected_out) < 1e-10
    assert relative_error(grads['input'], expected['input']) < 1e-10
