"""Golden numbers: parameters and MACs that the papers and independent implementations publish."""

import weakref

import pytest
import timm
import torch
from torch import nn

from timm_se_plugin.layers import SqueezeExcite
from timm_se_plugin.measuring.complexity import CONVENTION, complexity, saved_bytes


def params(name, **kwargs):
    return sum(p.numel() for p in timm.create_model(name, device='meta', **kwargs).parameters())


def test_se_resnet50_has_the_published_parameters():
    assert params('resnet50_plugin') == 25_557_032
    assert params('se_resnet50_plugin') == 28_088_024
    assert params('se_resnet50_plugin', attn_bias=False) == 28_071_976


def test_a_3x3_stem_has_the_published_parameters():
    model = timm.create_model('se_resnet50_plugin', device='meta')
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    assert sum(p.numel() for p in model.parameters()) == 28_080_344


@pytest.mark.parametrize(('r', 'millions'), [(2, 45.68), (4, 35.62), (8, 30.59), (16, 28.07), (32, 26.81)])
def test_reduction_ratios_of_table_10(r, millions):
    assert round(params('se_resnet50_plugin', attn_bias=False, attn_rd_ratio=1 / r) / 1e6, 2) == millions


@pytest.mark.parametrize(('stage', 'millions'), [(1, 25.58), (2, 25.69), (3, 26.34), (4, 27.13)])
def test_single_stages_of_table_13(stage, millions):
    assert round(params('se_resnet50_plugin', attn_bias=False, attn_stages=stage) / 1e6, 2) == millions


def test_attention_inside_the_3x3_of_table_15():
    assert round(params('se_resnet50_plugin', attn_bias=False, attn_integration='3x3') / 1e6, 2) == 25.71


def sknet_params(blocks):
    """By hand, from the official prototxt's widths: 1x1, two branches, attention, 1x1, and a stage's first shortcut."""
    total, channels = 3 * 64 * 7 * 7 + 2 * 64, 64
    for width, d, count in zip((128, 256, 512, 1024), (32, 32, 32, 64), blocks, strict=True):
        out = 2 * width
        for block in range(count):
            total += channels * width + 2 * width + 2 * (width * width // 32 * 3 * 3 + 2 * width)
            total += width * d + 2 * d + d * 2 * width
            total += width * out + 2 * out + (channels * out + 2 * out) * (block == 0)
            channels = out
    return total + channels * 1000 + 1000


@pytest.mark.parametrize(('name', 'blocks', 'published'), [
    ('sk_resnext26_32x4d_plugin', (2, 2, 2, 2), None), ('sk_resnext50_32x4d_plugin', (3, 4, 6, 3), 27_479_784),
    ('sk_resnext101_32x4d_plugin', (3, 4, 23, 3), None)])
def test_sknets_have_the_parameters_of_the_official_prototxt(name, blocks, published):
    assert params(name) == sknet_params(blocks)
    assert published in (None, sknet_params(blocks))


@pytest.mark.parametrize(('name', 'millions', 'megas'), [
    ('sk_shufflenetv2_050_plugin', 1.48, 42.58), ('sk_shufflenetv2_100_plugin', 2.63, 145.66)])
def test_shufflenets_with_sk_are_near_those_of_table_4(name, millions, megas):
    cost = complexity(timm.create_model(name, device='meta'))  # torchvision's plain 1.0x is 0.17 M smaller
    assert cost.params / 1e6 == pytest.approx(millions, rel=0.05)
    assert cost.macs / 1e6 == pytest.approx(megas, rel=0.025)


@pytest.mark.parametrize(('options', 'millions'), [
    ({'attn_kernels': (3, 7)}, 27.5), ({'attn_kernels': (3, 3)}, 27.5),
    ({'attn_keep_3x3': False, 'attn_groups': (32, 64)}, 28.1),
    ({'attn_kernels': (3, 7), 'attn_keep_3x3': False, 'attn_groups': (32, 128)}, 28.1),
])
def test_second_branches_of_table_6(options, millions):
    assert params('sk_resnext50_32x4d_plugin', **options) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize(('name', 'millions', 'gigas'), [
    ('resnext50_32x4d_plugin', 25.0, 4.24), ('sk_resnext50_32x4d_plugin', 27.5, 4.47),
    ('resnext101_32x4d_plugin', 44.3, 7.99), ('sk_resnext101_32x4d_plugin', 48.9, 8.46),
])
def test_sknets_of_table_2(name, millions, gigas):
    cost = complexity(timm.create_model(name, device='meta'))
    assert cost.params / 1e6 == pytest.approx(millions, rel=0.005)
    assert cost.macs / 1e9 == pytest.approx(gigas, rel=0.01)


def test_macs_of_table_2_with_the_stride_in_the_first_1x1():
    plain = complexity(timm.create_model('legacy_seresnet50_plugin', attn='none', device='meta'))
    model = complexity(timm.create_model('legacy_seresnet50_plugin', device='meta'))
    assert round(plain.macs / 1e9, 2) == 3.86
    # The paper's 3.87 counts the pooling and the scaling too: 2 passes over 15.1M activations.
    assert model.macs - plain.macs == model.attention_macs == 2_514_944
    assert model.params - plain.params == model.attention_params == 28_088_024 - 25_557_032


def test_input_is_the_models_own_unless_given():
    model = timm.create_model('se_resnet10t_plugin', in_chans=1, device='meta').bfloat16()
    assert complexity(model).input_size == (1, 176, 176)
    assert complexity(timm.create_model('vit_tiny_patch16_224', depth=1, img_size=32)).input_size == (3, 32, 32)


def test_total_is_the_networks_and_the_convention_comes_first():
    model = timm.create_model('se_resnet18_plugin', device='meta')
    cost = complexity(model, (3, 64, 64))
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert str(cost).splitlines()[0] == CONVENTION
    assert f'{cost.macs:,}' in str(cost).splitlines()[-1]
    # by hand: the stem's 7x7 convolution, 3 -> 64 channels on a 32x32 map
    assert next(m.macs for m in cost.modules if m.name == 'conv1') == 7 * 7 * 3 * 64 * 32 * 32
    assert next(m for m in cost.modules if m.name == 'layer1.0.se.fc1').is_attention


def test_every_module_has_what_it_computes_itself():
    cost = complexity(timm.create_model('sk_resnet18_plugin', device='meta'), (3, 64, 64))
    # each branch by hand: 3x3, 64 -> 64 channels on a 16x16 map; what only holds them has nothing
    macs = {m.name: m.macs for m in cost.modules if m.name.startswith('layer1.0.conv1') and 'attn' not in m.name}
    branch = 3 * 3 * 64 * 64 * 16 * 16
    assert {name: value for name, value in macs.items() if value} == {
        'layer1.0.conv1.paths.0.conv': branch, 'layer1.0.conv1.paths.1.conv': branch}


@pytest.mark.parametrize(('name', 'part', 'attention'), [
    ('efficientnet_b0', '.se.', 636_540), ('mobilenetv3_large_100', '.se.', None), ('skresnet50', '.conv2.attn.', None),
    ('legacy_seresnet50', '.se_module.', 2_530_992), ('hgnet_base', '.aggregation.1.', 6_970_240)])
def test_the_attention_of_timms_other_families_is_counted(name, part, attention):
    model = timm.create_model(name, device='meta')
    cost = complexity(model, (3, 64, 64))
    assert cost.attention_params == sum(p.numel() for key, p in model.named_parameters() if part in key) > 0
    assert attention in (None, cost.attention_params)
    # Each works on a map of 1x1, where a convolution multiplies once for each of its weights.
    assert cost.attention_macs == sum(p.numel() for key, p in model.named_parameters() if part in key and p.dim() == 4)


def test_a_layer_alone_has_its_macs():
    assert complexity(nn.Conv2d(3, 8, 3), (3, 8, 8)).macs == 7776


def test_an_attention_alone_is_all_attention():
    found = complexity(SqueezeExcite(64), (64, 8, 8))
    assert found.attention_params == found.params == 2 * 4 * 64 + 4 + 64
    assert found.attention_macs == found.macs == 2 * 4 * 64


def test_the_bytes_are_counted_without_a_change_of_the_network():
    model = timm.create_model('se_test_resnet_plugin').train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert saved_bytes(model, torch.randn(2, 3, 32, 32)) > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('fused', [True, False])
def test_the_maps_whose_bytes_are_counted_are_freed(fused):
    model, x = timm.create_model('se_test_resnet_plugin', attn_fused=fused).train(), torch.randn(2, 3, 32, 32)
    saved_bytes(model, x)
    images = weakref.ref(x)
    del x
    assert images() is None  # the first convolution keeps them


def test_a_shared_parameter_counts_once():
    model = timm.create_model('se_resnet20_cifar_plugin', device='meta')
    model.layer1[1].se.fc1.weight = model.layer1[0].se.fc1.weight
    assert complexity(model).params == sum(p.numel() for p in model.parameters())


def test_a_module_in_two_blocks_has_its_parameters_once_and_macs_in_each():
    shared = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    model = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.ReLU()))
    costs = {module.name: (module.params, module.macs) for module in complexity(model, (4, 8, 8)).modules}
    assert costs == {'0.0.0': (148, 9216), '1.0.0': (0, 9216)}


def test_a_users_hook_is_not_called():
    layer, seen = nn.Conv2d(3, 8, 3), []
    layer.register_forward_hook(lambda module, args, output: seen.append(output))
    assert complexity(layer, (3, 8, 8)).macs == 7776
    assert not seen


def test_an_image_that_the_network_does_not_take_is_one_clear_error():
    with pytest.raises(ValueError, match=r'ResNet does not take an image of \(4, 64, 64\)'):
        complexity(timm.create_model('se_resnet18_plugin', device='meta'), (4, 64, 64))


def test_a_network_whose_parameters_go_through_modules_is_counted():
    assert complexity(timm.create_model('cait_xxs24_224', device='meta')).macs == 2_523_475_200
