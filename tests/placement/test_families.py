"""How many places each family has, and where, against the architectures that the papers and timm describe."""

import re
from collections import Counter

import pytest
import timm
import torch
from networks import family_bases
from torch import nn

from timm_se_plugin import add_attention, remove_attention
from timm_se_plugin.models._registry import architectures
from timm_se_plugin.placement import attention_modules
from timm_se_plugin.placement.families import FAMILIES, is_of
from timm_se_plugin.placement.spec import INTEGRATIONS


def on_meta(name, **kwargs):
    return timm.create_model(name, device='meta', **kwargs)


# The number of blocks, as the papers' tables give it, and where in a block.
PLACES = {
    'inception_v3': (11, r'Mixed_[567][a-e]'),  # arXiv 1512.00567: 3 + 1 + 4 + 1 + 2
    'inception_v4': (16, r'features\.\d+'),  # arXiv 1602.07261: 4 + 1 + 7 + 1 + 3
    'inception_resnet_v2': (43, r'(mixed_..|repeat(_.)?\.\d+\.conv2d|block8\.conv2d)'),  # 1 + 10 + 1 + 20 + 1 + 10
    'bn_inception': (10, r'inception_[345][a-e]'),  # arXiv 1502.03167: 3 + 5 + 2
    'vgg11_bn': (8, r'features\.\d+'), 'vgg16_bn': (13, r'features\.\d+'), 'vgg19_bn': (16, r'features\.\d+'),
    'mobilenetv1_100': (13, r'blocks\.\d\.\d\.bn2\.act'),  # arXiv 1704.04861: 13 depthwise separable blocks
    'mobilenetv2_100': (17, r'blocks\.\d\.\d'),  # arXiv 1801.04381: 1 + 2 + 3 + 4 + 3 + 3 + 1
    'resnetv2_18': (8, r'stages\.\d\.blocks\.\d\.conv2'), 'resnetv2_50': (16, r'stages\.\d\.blocks\.\d\.conv3'),
    'resnetv2_101x1_bit': (33, r'stages\.\d\.blocks\.\d+\.conv3'),
    'res2net50_26w_4s': (16, r'layer\d\.\d'), 'res2net101d': (33, r'layer\d\.\d+'),
    'densenet121': (4, r'features\.(transition\d|norm5\.act)'),
    'legacy_xception': (12, r'block\d+\.rep'),  # arXiv 1610.02357: 3 + 8 + 1
    'xception41': (13, r'blocks\.\d+\.stack\.conv3'), 'xception65p': (21, r'blocks\.\d+\.stack\.conv3'),
    'dpn92': (30, r'features\.conv\d_\d+\.c1x1_c'),  # arXiv 1707.01629: 3 + 4 + 20 + 3
    'dpn68b': (2 * 22, r'features\.conv\d_\d+\.c1x1_c[12]'),  # 3 + 4 + 12 + 3, both paths' convolutions
    'regnetx_002': (13, r's\d\.b\d'), 'regnetx_032': (25, r's\d\.b\d+'),  # arXiv 2003.13678: 1-1-4-7; 2-6-15-2
    'convnext_tiny': (18, r'stages\.\d\.blocks\.\d\.drop_path'),  # arXiv 2201.03545: 3 + 3 + 9 + 3
}


@pytest.mark.parametrize('base', PLACES)
def test_places_are_those_of_the_architecture(base):
    number, pattern = PLACES[base]
    names = list(attention_modules(on_meta(f'se_{base}_plugin')))
    assert len(names) == number
    assert [name for name in names if not re.fullmatch(rf'{pattern}\.se', name)] == []


def test_every_family_is_checked():
    kept = [module for base in PLACES for module in on_meta(f'{base}_plugin').modules()]
    elsewhere = ('resnet', 'shake_shake', 'shufflenetv2')  # tests/models has these
    assert [name for name, family in FAMILIES.items() if name not in elsewhere
            and not any(is_of(module, family.blocks) for module in kept)] == []


@pytest.mark.parametrize('base', ['vgg16_bn', 'inception_v4', 'bn_inception'])
def test_attention_follows_the_activation_or_the_concatenation(base):
    model = on_meta(f'se_{base}_plugin')
    holders = Counter(
        type(model.get_submodule(name.removesuffix('.se'))).__name__ for name in attention_modules(model))
    assert holders == {
        'vgg16_bn': {'ReLU': 13}, 'bn_inception': {'BnInceptionModule': 10},
        'inception_v4': {'InceptionA': 4, 'ReductionA': 1, 'InceptionB': 7, 'ReductionB': 1, 'InceptionC': 3}}[base]


@pytest.mark.parametrize(('base', 'blocks'), [('efficientnet_es', 18), ('mobilenetv4_conv_medium', 22)])
def test_every_inverted_residual_is_attended_whatever_its_kind(base, blocks):
    with torch.device('meta'):
        model = timm.create_model(base)
    names = ('InvertedResidual', 'UniversalInvertedResidual', 'EdgeResidual')
    assert len(add_attention(model, 'se')) == blocks == sum(type(block).__name__ in names for block in model.modules())


def test_stages_need_feature_levels_that_are_modules():
    with torch.device('meta'):
        model = timm.create_model('hrnet_w18_small')
    with pytest.raises(ValueError, match=r"attn_stages is not possible in \w+, whose feature level 'stem' is not the"):
        add_attention(model, 'se', stages=2)


def test_mobilenet_grows_as_in_table_3():
    counts = [sum(p.numel() for p in on_meta(f'{prefix}mobilenetv1_100_plugin').parameters()) for prefix in ('', 'se_')]
    assert [round(count / 1e6, 1) for count in counts] == [4.2, 4.7]


@pytest.mark.parametrize(('base', 'integration'), [
    (base, integration) for base, family in (
        ('convnext_atto', 'convnext'), ('inception_resnet_v2', 'inception_resnet_v2'), ('resnetv2_18', 'resnetv2'))
    for integration in FAMILIES[family].sites])
def test_integrations_change_the_place(base, integration):
    names = set(attention_modules(on_meta(f'{base}_plugin', attn='se', attn_integration=integration)))
    blocks = {'convnext_atto': 12, 'inception_resnet_v2': 40, 'resnetv2_18': 8}[base]
    assert len(names) == blocks + (3 if base == 'inception_resnet_v2' and integration == 'standard' else 0)
    assert integration == 'standard' or names.isdisjoint(attention_modules(on_meta(f'se_{base}_plugin')))


def test_an_integration_that_a_family_has_not_is_one_clear_error():
    with pytest.raises(ValueError, match=(
            r"attn_integration='identity' is not possible in CheckpointedInceptionResnetV2 with the blocks Block1.*; "
            'choose standard or post')):
        timm.create_model('inception_resnet_v2_plugin', attn='se', attn_integration='identity')
    with pytest.raises(ValueError, match=r"attn_fused=True is not possible in VGG, .*; choose 'auto' or False"):
        timm.create_model('se_vgg11_bn_plugin', attn_fused=True, device='meta')
    with pytest.raises(ValueError, match="not possible in ResNet with the blocks Bottle2neck; choose standard"):
        timm.create_model('res2net50_26w_4s_plugin', attn='se', attn_integration='pre', device='meta')
    with pytest.raises(ValueError, match=r"attn='sk' is not possible in VGG .*: .*; choose one of se, eca"):
        timm.create_model('vgg11_bn_plugin', attn='sk', device='meta')


@pytest.mark.parametrize(('base', 'expected'), [
    ('vgg16_bn', [7, 3, 3, 0]),  # strides 1, 2 and 4; 8; 16
    ('convnext_atto', [2, 2, 6, 2]), ('regnetx_002', [1, 1, 4, 7]), ('inception_v3', [0, 3, 5, 3]),
    ('mobilenetv2_100', [3, 3, 7, 4]), ('legacy_xception', [1, 1, 9, 1]),
    *(pytest.param(base, expected, marks=pytest.mark.slow) for base, expected in (
        ('densenet121', [1, 1, 1, 1]), ('res2net50_26w_4s', [3, 4, 6, 3]), ('dpn92', [3, 4, 20, 3]),
        ('mobilenetv1_100', [3, 2, 6, 2]))),
])
def test_stages_are_the_last_four_feature_levels(base, expected):
    model = on_meta(base)
    found = []
    for stage in (1, 2, 3, 4):
        if expected[stage - 1]:
            found.append(len(add_attention(model, stages=stage)))
            remove_attention(model)
        else:
            found.append(0)
            with pytest.raises(ValueError, match=r'has no place for attention in attn_stages'):
                add_attention(model, stages=stage)
    assert found == expected
    assert len(add_attention(model)) == sum(found)


def test_stages_are_a_flag_too():
    model = on_meta('se_regnetx_002_plugin', attn_stages=(1, 3))
    assert {name[:2] for name in attention_modules(model)} == {'s1', 's3'}


def test_every_integration_of_the_table_has_a_name():
    assert {name for family in FAMILIES.values() for name in family.sites} == set(INTEGRATIONS)


def test_every_name_of_the_table_is_registered_twice():
    names = {base for base in family_bases() if timm.is_model(base)}
    assert {f'{prefix}{base}_plugin' for base in names for prefix in ('', 'se_')} <= architectures.keys()
    assert len(names) > 100


@pytest.mark.slow
@pytest.mark.parametrize('base', family_bases())
def test_every_name_builds_with_attention(base):
    model = on_meta(f'se_{base}_plugin')
    assert len(attention_modules(model)) >= 4
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) and 'se' in m._modules for m in model.modules())
    with torch.no_grad():
        plain = on_meta(f'{base}_plugin')
    assert plain.state_dict().keys() <= model.state_dict().keys()
