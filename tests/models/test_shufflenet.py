"""ShuffleNetV2: torchvision's network, number for number, with attention in its units."""

import pytest
import timm
import torch
import torchvision
from networks import layers, shallow
from parity import assert_same_network, images, randomised, relative_error
from torch import nn

from timm_se_plugin import fuse_for_inference
from timm_se_plugin.layers import SelectiveKernel, SqueezeExcite

NAMES = {'shufflenetv2_050_plugin': 'shufflenet_v2_x0_5', 'shufflenetv2_100_plugin': 'shufflenet_v2_x1_0'}


@pytest.mark.parametrize(('name', 'theirs'), NAMES.items())
def test_has_torchvisions_published_parameters(name, theirs):
    published = torchvision.models.get_model_weights(theirs).DEFAULT.meta['num_params']
    assert sum(p.numel() for p in timm.create_model(name, device='meta').parameters()) == published


@pytest.mark.parametrize('size', [(64, 64), (65, 97)])
def test_computes_what_torchvisions_does(size):
    reference = randomised(torchvision.models.shufflenet_v2_x0_5(num_classes=10))
    model = timm.create_model('shufflenetv2_050_plugin', num_classes=10)
    model.load_state_dict(reference.state_dict())
    assert list(model.state_dict()) == list(reference.state_dict())
    assert_same_network(model, reference, images(2, 3, *size))


def literal(m, x):
    """ShuffleNet V2, Figure 3 (c) and (d), with SE at the end of the residual branch."""
    x = m.maxpool(torch.relu(m.conv1[1](m.conv1[0](x))))
    for stage in (m.stage2, m.stage3, m.stage4):
        for unit in stage:
            half = x.shape[1] // 2
            kept, b = (unit.branch1(x), x) if unit.stride == 2 else (x[:, :half], x[:, half:])
            branch = unit.branch2
            b = torch.relu(branch[1](branch[0](b)))
            b = branch[4](branch[3](b))
            b = torch.relu(branch[6](branch[5](b)))
            b = b * torch.sigmoid(branch.se.fc2(torch.relu(branch.se.fc1(b.mean((2, 3), keepdim=True)))))
            x = torch.stack([kept, b], 2).flatten(1, 2)  # the shuffle: one of each in turn
    return m.fc(torch.relu(m.conv5[1](m.conv5[0](x))).mean((2, 3)))


def test_se_is_at_the_end_of_each_branch():
    model = randomised(timm.create_model('se_shufflenetv2_050_plugin', num_classes=10)).double()
    for training in (False, True):
        x = images(2, 3, 64, 64)
        assert relative_error(model.train(training)(x), literal(model, x)) < 1e-10


def test_sk_takes_the_place_of_the_depthwise_convolution_and_its_norm():
    model = timm.create_model('sk_shufflenetv2_100_plugin')
    units = {f'stage{stage}.{i}' for stage, n in ((2, 4), (3, 8), (4, 4)) for i in range(n)}
    assert layers(model, SelectiveKernel) == {f'{unit}.branch2.3' for unit in units}
    first = model.stage3[0].branch2[3]
    assert [(path.conv.groups, path.conv.stride, path.conv.dilation) for path in first.paths] == [
        (116, (2, 2), (1, 1)), (116, (2, 2), (2, 2))]
    assert [model.get_submodule(f'stage{s}.1.branch2.3.attn.fc_reduce').out_channels for s in (2, 3, 4)] == [32] * 3
    assert not layers(model, SqueezeExcite)


def test_stages_of_the_attention_are_the_networks_three():
    model = timm.create_model('shufflenetv2_050_plugin', attn='sk+se', attn_stages=1, attn_sk_stages=(2, 3))
    assert {name.split('.')[0] for name in layers(model, SqueezeExcite)} == {'stage2'}
    assert {name.split('.')[0] for name in layers(model, SelectiveKernel)} == {'stage3', 'stage4'}


@pytest.mark.parametrize(('output_stride', 'dilations'), [
    (32, {'stage3.0': 1, 'stage3.1': 1, 'stage4.0': 1, 'stage4.1': 1}),
    (16, {'stage3.0': 1, 'stage3.1': 1, 'stage4.0': 1, 'stage4.1': 2}),
    (8, {'stage3.0': 1, 'stage3.1': 2, 'stage4.0': 2, 'stage4.1': 4})])
def test_dilation_takes_the_place_of_strides(output_stride, dilations):
    model = timm.create_model('shufflenetv2_050_plugin', output_stride=output_stride)
    assert {unit: model.get_submodule(f'{unit}.branch2.3').dilation[0] for unit in dilations} == dilations
    assert [info['reduction'] for info in model.feature_info] == [2, 4, 8, min(16, output_stride), output_stride]


def test_intermediates_and_pruning_keep_timms_contract():
    model = shallow('se_shufflenetv2_050_plugin').eval()
    x = images(1, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        final, levels = model.forward_intermediates(x)
        assert [(level.shape[1], 64 // level.shape[-1]) for level in levels] == [
            (24, 2), (24, 4), (48, 8), (96, 16), (192, 32)]
        assert torch.equal(model.forward_head(final), model(x))
        last, = model.forward_intermediates(x, [2], stop_early=True, intermediates_only=True)
        assert torch.equal(last, levels[2])
        stopped, _ = model.forward_intermediates(x, [2], stop_early=True)
        assert torch.equal(stopped, levels[2])
        assert model.prune_intermediate_layers([-1], prune_head=False) == [4]
        assert model(x).shape == (1, 1000)
        assert model.prune_intermediate_layers([1, 2]) == [1, 2]
        assert torch.equal(model(x), levels[2])
        assert model.num_features == 48
    with pytest.raises(ValueError, match="output_fmt='NLC' is not NCHW, the only format"):
        model.forward_intermediates(x, output_fmt='NLC')


@pytest.mark.parametrize('name', ['se_shufflenetv2_050_plugin', 'sk_shufflenetv2_050_plugin'])
def test_inference_form_computes_the_same(name):
    model = shallow(name).eval()
    x = images(2, 3, 64, 64, dtype=torch.float32)
    with torch.no_grad():
        deployed = fuse_for_inference(model)
        assert relative_error(deployed(x), model(x)) < 1e-4
    assert len(layers(deployed, nn.BatchNorm2d)) < len(layers(model, nn.BatchNorm2d))


@pytest.mark.parametrize(('kwargs', 'message'), [
    ({'output_stride': 4}, 'output_stride=4 is not one of 8, 16, 32'),
    ({'attn': 'se', 'attn_stages': 4}, r'attn_stages=\(4,\) names a stage'),
    ({'attn': 'se', 'attn_integration': 'post'}, "'post' is not possible in ShuffleNetV2 .*; choose standard"),
    ({'attn': 'se', 'attn_fused': True}, 'attn_fused=True is not possible in ShuffleNetV2'),
])
def test_what_a_unit_has_no_place_for_is_one_clear_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('shufflenetv2_050_plugin', **kwargs)
