"""CIFAR networks: published sizes, parity with literal compositions in float64, and what three stages change."""

import pytest
import timm
import torch
from parity import assert_same_network, images, randomised
from torch import nn

from timm_se_plugin import AttentionSpec
from timm_se_plugin.layers import SelectiveKernel, SqueezeExcite
from timm_se_plugin.models._cifar_networks import PaddedShortcut


def params(name, **kwargs):
    return sum(p.numel() for p in timm.create_model(name, device='meta', **kwargs).parameters())


def layers(model, kind):
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


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


@pytest.mark.parametrize('size', [(32, 32), (31, 34)])
@pytest.mark.parametrize('name', ['resnet20_cifar_plugin', 'se_resnet20_cifar_plugin'])
def test_computes_what_he_et_al_say(name, size):
    model = randomised(timm.create_model(name))
    literal = LiteralResNet(timm.create_model(name))
    literal.model.load_state_dict(model.state_dict())
    prefixed = {'model.' + key: value for key, value in model.state_dict().items()}
    assert literal.state_dict().keys() == prefixed.keys()
    assert_same_network(
        model, literal, images(2, 3, *size), key_map=lambda d: {k.removeprefix('model.'): v for k, v in d.items()})


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
        assert model.num_features == 32


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
     r'attn_stages=\(3, 4\) is not allowed for se_resnet20_cifar_plugin; allowed: one or more of 1, 2, 3$'),
    ('resnet20_cifar_plugin', {'attn': 'eca', 'attn_stages': 4}, 'attn_stages=4 is not allowed for resnet20_cifar'),
    ('resnet20_cifar_plugin', {'attn': 'sk+se', 'attn_sk_stages': (1, 2, 3, 4)}, r'attn_sk_stages=\(1, 2, 3, 4\) is'),
    ('se_resnet20_cifar_plugin', {'attn': 'eca'}, r'allowed: se \(in resnet20_cifar_plugin the flag is open\)'),
    ('resnet20_cifar_plugin', {'shortcut': 'C'}, "shortcut='C' is not allowed; allowed: A, B"),
    ('resnet20_cifar_plugin', {'output_stride': 1}, 'output_stride=1 is not allowed; allowed: 2, 4, 8, 16, 32'),
    ('resnet20_cifar_plugin', {'stem_type': 'deep'}, "stem_type='deep' is not allowed in a CIFAR network"),
    ('resnet20_cifar_plugin', {'avg_down': True}, "avg_down=True is not allowed .* with shortcut='A'"),
])
def test_what_three_stages_or_a_cifar_stem_cannot_do_is_one_clear_error(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **kwargs)
