"""CIFAR networks: published sizes, parity with literal compositions in float64, and what three stages change."""

import pytest
import timm
import torch
from networks import layers, shallow
from parity import IS_OLD_TIMM, assert_same_network, images, randomised, relative_error
from torch import nn

from timm_se_plugin import AttentionSpec, fuse_for_inference
from timm_se_plugin.layers import SelectiveKernel, SqueezeExcite
from timm_se_plugin.models._cifar_networks import PaddedShortcut
from timm_se_plugin.models._shake_shake import ShakeShake


def params(name, **kwargs):
    return sum(p.numel() for p in timm.create_model(name, device='meta', **kwargs).parameters())


@pytest.mark.parametrize(('depth', 'millions', 'digits'), [
    (20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1)])
def test_residual_networks_have_the_parameters_of_he_et_al_table_6(depth, millions, digits):
    """With option A; option B's projections would make 0.47M and 0.86M of the second and the fourth."""
    assert round(params(f'resnet{depth}_cifar_plugin') / 1e6, digits) == millions


def test_resnet20_has_the_parameters_counted_by_hand():
    """Stem 432, blocks 3 * 4608 + 13824 + 2 * 18432 + ..., norms two numbers for each of 688 channels, fc 650."""
    stage1 = 6 * 9 * 16 * 16
    stage2 = 9 * 16 * 32 + 5 * 9 * 32 * 32
    stage3 = 9 * 32 * 64 + 5 * 9 * 64 * 64
    norms = 2 * (16 + 6 * (16 + 32 + 64))
    assert params('resnet20_cifar_plugin') == 9 * 3 * 16 + stage1 + stage2 + stage3 + norms + 650 == 269_722


@pytest.mark.parametrize(('name', 'millions'), [
    ('resnetv2_164_cifar_plugin', 1.7), ('wide_resnet16_8_cifar_plugin', 11.0),
    ('shake_shake26_2x96d_cifar_plugin', 26.2)])
def test_bases_of_the_se_papers_tables_4_and_5_have_their_papers_parameters(name, millions):
    assert round(params(name) / 1e6, 1) == millions


@pytest.mark.parametrize(('name', 'millions', 'exactly'), [
    ('resnext29_16x32d_cifar_plugin', 25.2, 25_136_970), ('sk_resnext29_16x32d_cifar_plugin', 27.7, 27_813_450)])
def test_sknet29_and_its_base_have_the_parameters_of_table_5(name, millions, exactly):
    assert params(name) == exactly
    assert exactly / 1e6 == pytest.approx(millions, rel=0.005)


def test_every_block_of_the_se_and_the_sk_network_carries_it():
    blocks = {f'layer{stage}.{block}' for stage in (1, 2, 3) for block in range(3)}
    assert layers(timm.create_model('se_resnet20_cifar_plugin'), SqueezeExcite) == {f'{b}.se' for b in blocks}
    assert layers(timm.create_model('sk_resnet20_cifar_plugin'), SelectiveKernel) == {f'{b}.conv1' for b in blocks}
    model = timm.create_model('se_resnet20_cifar_plugin')
    assert [model.get_submodule(f'layer{s}.0.se').fc1.out_channels for s in (1, 2, 3)] == [1, 2, 4]  # C / 16


class LiteralResNet(nn.Module):
    """He et al., section 4.2, written out over the parameters of a network: shortcuts of option A, SE if there is."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        m = self.model
        x = torch.relu(m.bn1(m.conv1(x)))
        for stage in (m.layer1, m.layer2, m.layer3):
            for block in stage:
                y = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
                if getattr(block, 'se', None) is not None:
                    z = block.se.fc2(torch.relu(block.se.fc1(y.mean((2, 3), keepdim=True))))
                    y = y * torch.sigmoid(z)
                if y.shape != x.shape:
                    zeros = torch.zeros_like(y)
                    zeros[:, :x.shape[1]] = x[:, :, ::2, ::2]
                    x = zeros
                x = torch.relu(x + y)
        return m.fc(x.mean((2, 3)))


class LiteralPreActivation(nn.Module):
    """He et al. 2016, Figure 1 (b), and the shortcuts' projections after the first activation, with SE if there is."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        m = self.model
        x = m.stem.conv(x)
        for stage in m.stages:
            for block in stage.blocks:
                a = torch.relu(norm(block.norm1, x))
                last = block.conv2
                y = nn.Conv2d.forward(last, torch.relu(norm(block.norm2, block.conv1(a))))
                if hasattr(block, 'conv3'):
                    last = block.conv3
                    y = nn.Conv2d.forward(last, torch.relu(norm(block.norm3, y)))
                if hasattr(last, 'se'):
                    z = last.se.fc2(torch.relu(last.se.fc1(y.mean((2, 3), keepdim=True))))
                    y = y * torch.sigmoid(z)
                x = y + (x if block.downsample is None else block.downsample.conv(a))
        x = torch.relu(norm(m.norm, x)).mean((2, 3), keepdim=True)
        return m.head.fc(x).flatten(1)


def norm(layer, x):
    return nn.BatchNorm2d.forward(layer, x)


SMALL_V2 = {'layers': (2, 1, 1)}


@pytest.mark.parametrize('size', [(32, 32), (31, 34)])
@pytest.mark.parametrize(('name', 'kwargs', 'literal_network'), [
    ('resnet20_cifar_plugin', {}, LiteralResNet), ('se_resnet20_cifar_plugin', {}, LiteralResNet),
    ('resnetv2_164_cifar_plugin', SMALL_V2, LiteralPreActivation),
    ('se_resnetv2_164_cifar_plugin', SMALL_V2, LiteralPreActivation),
    ('wide_resnet16_8_cifar_plugin', {'channels': (24, 32, 40)}, LiteralPreActivation),
    ('se_wide_resnet16_8_cifar_plugin', {'channels': (24, 32, 40)}, LiteralPreActivation)])
def test_computes_what_the_papers_say(name, kwargs, literal_network, size):
    model = randomised(timm.create_model(name, **kwargs))
    literal = literal_network(timm.create_model(name, **kwargs))
    literal.model.load_state_dict(model.state_dict())
    prefixed = {'model.' + key: value for key, value in model.state_dict().items()}
    assert literal.state_dict().keys() == prefixed.keys()
    assert_same_network(
        model, literal, images(2, 3, *size), key_map=lambda d: {k.removeprefix('model.'): v for k, v in d.items()})


def literal_shake_shake(m, x):
    """In evaluation: shakeshakeblock.lua of Gastaldi's release, written out."""
    x = m.bn1(m.conv1(x))
    for stage in (m.layer1, m.layer2, m.layer3):
        for block in stage:
            a = torch.relu(x)
            branches = [
                branch.bn2(branch.conv2(torch.relu(branch.bn1(branch.conv1(a)))))
                for branch in (block.branch1, block.branch2)]
            y = 0.5 * branches[0] + 0.5 * branches[1]
            if isinstance(block.se, SqueezeExcite):
                y = y * torch.sigmoid(block.se.fc2(torch.relu(block.se.fc1(y.mean((2, 3), keepdim=True)))))
            if block.downsample is not None:
                d = block.downsample
                shifted = torch.zeros_like(a)
                shifted[:, :, 1:, 1:] = a[:, :, :-1, :-1]
                kept, other = (t[:, :, ::d.stride, ::d.stride] for t in (a, shifted))
                x = d.bn(torch.cat([d.conv1(kept), d.conv2(other)], 1))
            x = x + y
    return m.fc(torch.relu(x).mean((2, 3)))


@pytest.mark.parametrize('name', ['shake_shake26_2x96d_cifar_plugin', 'se_shake_shake26_2x96d_cifar_plugin'])
def test_computes_what_gastaldis_release_does(name):
    model = randomised(timm.create_model(name, layers=(2, 1, 1), channels=(24, 32, 40))).double().eval()
    for size in ((32, 32), (31, 34)):
        x = images(2, 3, *size)
        assert relative_error(model(x), literal_shake_shake(model, x)) < 1e-10


def test_branches_are_mixed_by_one_number_forward_and_another_backward_for_each_image():
    a, b = (images(3, 2, 4, 4, seed=seed).requires_grad_() for seed in (0, 1))
    mix = ShakeShake()
    torch.manual_seed(0)
    out = mix(a, b)
    torch.manual_seed(0)
    alpha, beta = (torch.empty(3, 1, 1, 1, dtype=torch.float64).uniform_() for _ in range(2))
    assert relative_error(out, alpha * a + (1 - alpha) * b) < 1e-14
    out.sum().backward()
    assert relative_error(a.grad, beta.expand_as(a)) < 1e-14
    assert relative_error(b.grad, (1 - beta).expand_as(b)) < 1e-14
    assert relative_error(mix.eval()(a, b), (a + b) / 2) < 1e-14


def test_attention_of_shake_shake_follows_the_mix():
    model = timm.create_model('se_shake_shake26_2x96d_cifar_plugin', layers=(1, 1, 1), channels=(16, 16, 16))
    assert layers(model, SqueezeExcite) == {'layer1.0.se', 'layer2.0.se', 'layer3.0.se'}
    seen = {}
    block = model.eval().layer2[0]
    block.mix.register_forward_hook(lambda module, inputs, output: seen.update(mix=output))
    block.se.register_forward_pre_hook(lambda module, inputs: seen.update(se=inputs[0]))
    model(torch.zeros(1, 3, 32, 32))
    assert seen['se'] is seen['mix']


@pytest.mark.parametrize('name', [
    'se_resnet20_cifar_plugin', 'se_resnext29_16x32d_cifar_plugin', 'se_resnetv2_164_cifar_plugin',
    'se_shake_shake26_2x96d_cifar_plugin'])
def test_inference_form_computes_the_same(name):
    model = shallow(name).eval()
    x = images(2, 3, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        deployed = fuse_for_inference(model)
        assert relative_error(deployed(x), model(x)) < 1e-4
    assert len(layers(deployed, nn.BatchNorm2d)) < len(layers(model, nn.BatchNorm2d))


@pytest.mark.parametrize('name', ['se_resnetv2_164_cifar_plugin', 'se_resnet20_cifar_plugin'])
def test_gates_that_start_at_one_stay_there_when_initialised_again(name):
    model = timm.create_model(name, attn_init='identity')
    model.init_weights()
    gates = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
    assert gates
    assert not any(module.fc2.weight.any() for module in gates)


@pytest.mark.parametrize('size', [(8, 8), (7, 10)])
def test_shortcut_without_parameters_subsamples_and_pads(size):
    x = images(2, 3, *size)
    out = PaddedShortcut(2, 5)(x)
    assert torch.equal(out[:, :3], x[:, :, ::2, ::2])
    assert out.shape[1] == 8
    assert not out[:, 3:].any()


def test_option_b_projects():
    model = timm.create_model('resnet20_cifar_plugin', shortcut='B')
    assert sum(p.numel() for p in model.parameters()) - 269_722 == 16 * 32 + 64 + 32 * 64 + 128
    assert model.layer1[0].downsample is None


def test_features_are_the_stem_and_three_stages():
    model = timm.create_model('se_resnet20_cifar_plugin', features_only=True)
    assert model.feature_info.reduction() == [1, 1, 2, 4]
    assert model.feature_info.channels() == [16, 16, 32, 64]
    again = timm.create_model('se_resnet20_cifar_plugin', features_only=True, out_indices=(1, -1))
    assert again.feature_info.reduction() == [1, 4]
    assert timm.create_model('se_resnet20_cifar_plugin', features_only=True).feature_info.reduction() == [1, 1, 2, 4]


def test_output_stride_of_2_dilates_the_last_stage():
    model = timm.create_model('resnet20_cifar_plugin', output_stride=2, features_only=True)
    assert model.feature_info.reduction() == [1, 1, 2, 2]
    assert [f.shape[-1] for f in model(torch.zeros(1, 3, 32, 32))] == [32, 32, 16, 16]
    assert timm.create_model('resnet20_cifar_plugin', output_stride=2).layer3[1].conv1.dilation == (2, 2)


def test_intermediates_and_pruning_count_four_levels():
    model = timm.create_model('resnet20_cifar_plugin').eval()
    x = images(1, 3, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        final, all_of_them = model.forward_intermediates(x)
        assert len(all_of_them) == 4
        assert torch.equal(all_of_them[-1], final)
        assert torch.equal(model.forward_intermediates(x, 1, intermediates_only=True)[0], final)
        stem, stage2 = model.forward_intermediates(x, [0, -2], stop_early=True, intermediates_only=True)
        assert (stem.shape, stage2.shape) == ((1, 16, 32, 32), (1, 32, 16, 16))
        assert model.prune_intermediate_layers([-1], prune_head=False) == [3]
        assert model(x).shape == (1, 10)
        assert model.prune_intermediate_layers([1, 2]) == [1, 2]
        assert model(x).shape == (1, 32, 16, 16)
        assert IS_OLD_TIMM or model.num_features == 32  # timm tells it from 1.0.31


def test_attention_is_on_three_stages_unless_told_otherwise():
    for name, options in {
        'se_resnet20_cifar_plugin': {}, 'resnet20_cifar_plugin': {'attn': 'se'},
        'sk_resnet20_cifar_plugin': {'attn_rd_channels': 8},
    }.items():
        assert AttentionSpec.of(timm.create_model(name, **options)).stages == (1, 2, 3)
    spec = AttentionSpec.of(timm.create_model('resnet20_cifar_plugin', attn='sk+se', attn_stages=3))
    assert (spec.stages, spec.sk_stages) == ((3,), (1, 2, 3))


@pytest.mark.parametrize(('name', 'kwargs', 'message'), [
    ('se_resnet20_cifar_plugin', {'attn_stages': (3, 4)},
     r'attn_stages=\(3, 4\) names a stage .*; choose one or more of 1, 2, 3$'),
    ('resnet20_cifar_plugin', {'attn': 'eca', 'attn_stages': 4}, r'attn_stages=\(4,\) names a stage'),
    ('resnet20_cifar_plugin', {'attn': 'sk+se', 'attn_sk_stages': (1, 2, 3, 4)}, 'attn_sk_stages=.* names'),
    ('se_resnet20_cifar_plugin', {'attn': 'eca'}, 'resnet20_cifar_plugin accepts any'),
    ('resnet20_cifar_plugin', {'shortcut': 'C'}, "shortcut='C' is not one of A, B"),
    ('resnet20_cifar_plugin', {'output_stride': 1}, 'output_stride=1 is not one of 2, 4, 8, 16, 32'),
    ('resnet20_cifar_plugin', {'stem_type': 'deep'}, "stem_type='deep' has no effect in a CIFAR network"),
    ('resnet20_cifar_plugin', {'avg_down': True}, "avg_down=True has no effect .* with shortcut='A'; leave it out"),
    ('resnet20_cifar_plugin', {'stem_width': 15}, 'stem_width=15 is not a positive even number'),
    ('resnetv2_164_cifar_plugin', {'stem_type': 'deep'}, "stem_type='deep' has no effect in a CIFAR network"),
    ('resnetv2_164_cifar_plugin', {'attn': 'sk'}, "attn='sk' is not possible in CifarResNetV2 .*; choose one of se"),
    ('se_resnetv2_164_cifar_plugin', {'attn_integration': 'pre'}, "'pre' is not possible in CifarResNetV2 .*; choose"),
    ('se_wide_resnet16_8_cifar_plugin', {'attn_fused': True}, "=True is not possible .* choose 'auto' or False"),
    ('shake_shake26_2x96d_cifar_plugin', {'avg_down': True}, 'avg_down=True has no effect .* by Shake-Shake'),
    ('shake_shake26_2x96d_cifar_plugin', {'attn': 'sk+se'}, r"attn='sk\+se' is not possible in ShakeShakeResNet"),
])
def test_what_three_stages_or_a_cifar_stem_cannot_do_is_one_clear_error(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **kwargs)


@pytest.mark.parametrize('name', ['resnet20_cifar_plugin', 'resnetv2_164_cifar_plugin', 'shufflenetv2_050_plugin'])
def test_sites_are_names_of_the_finished_network(name):
    site = {'re': 'layer1', 'sh': 'stage2'}[name[:2]] if 'v2_164' not in name else r'stages\.0'
    model = timm.create_model(name, attn='se', attn_sites=site)
    assert [path for path, _ in model.named_modules() if path.endswith('.se')] == [f'{site.replace(chr(92), "")}.se']


@pytest.mark.parametrize('attn', ['scse', 'ese', 'cbam', 'gc', 'sse'])
def test_every_attention_of_a_preactivation_network_starts_at_identity(attn):
    model = timm.create_model('resnetv2_164_cifar_plugin', attn=attn, attn_init='identity').eval()
    layer = next(module for name, module in model.named_modules() if name.endswith('.se'))
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(layer(x), x)
