"""State dicts tell the attention that they belong to, and a network with another attention refuses them."""

import copy
import io
import pickle

import pytest
import timm
import torch
from parity import randomised
from torch import nn

from timm_se_plugin import add_attention, remove_attention

SK = {'attn': 'sk', 'layers': (1, 1, 1, 1)}


def saved(model):
    """The state dict as ``torch.save`` and ``torch.load`` return it."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(('theirs', 'mine', 'option'), [
    ({'attn': 'se', 'attn_init': 'identity'}, {'attn': 'se'}, "attn_gate='sigmoid' .the weights have 'double_sigmoid'"),
    ({'attn': 'se'}, {'attn': 'se', 'attn_squeeze': 'max'}, "attn_squeeze='max' .the weights have 'avg'"),
    ({'attn': 'cbam', 'attn_gate': 'hard_sigmoid'}, {'attn': 'cbam'}, "attn_gate='sigmoid'"),
    ({**SK, 'attn_kernels': (3, 7)}, SK, 'attn_kernels=.3, 5. .the weights have .3, 7.'),
])
def test_weights_of_another_attention_are_refused_and_nothing_is_changed(theirs, mine, option):
    name = 'resnet18_plugin' if theirs['attn'] == 'sk' else 'test_resnet_plugin'
    model, other = timm.create_model(name, **mine), randomised(timm.create_model(name, **theirs))
    before = copy.deepcopy(model.state_dict())
    for wrapped in (lambda network: network, nn.Sequential, torch.compile):
        with pytest.raises(ValueError, match=f'another attention than that of this network: {option}'):
            wrapped(model).load_state_dict(saved(wrapped(other)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.load_state_dict(dict(saved(other)))
    assert torch.equal(model.fc.weight, other.fc.weight)


@pytest.mark.parametrize(('theirs', 'mine'), [
    ({'attn_init': 'identity'}, {'attn_gate': 'double_sigmoid'}),
    ({'attn_fused': False}, {}),
    ({'attn_rd_ratio': 1 / 8}, {'attn_rd_channels': 8, 'attn_stages': [1]}),
    ({'attn_act_layer': 'swish'}, {'attn_act_layer': 'silu'}),
    ({'attn_rd_ratio': 1 / 2}, {'attn': 'cse'}),
])
def test_weights_of_the_same_attention_load_however_it_was_asked_for(theirs, mine):
    name = 'test_resnet_plugin'
    stages = {'attn_stages': [1]} if 'attn_stages' in mine else {}
    other = randomised(timm.create_model(name, attn='se', **theirs, **stages))
    width = other.layer1[0].se.fc1.out_channels
    model = timm.create_model(name, **{'attn': 'se', **mine, **({'attn_rd_channels': width} if stages else {})})
    model.load_state_dict(saved(other))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), other.eval()(x))


def test_groups_of_selective_kernels_are_left_to_the_shapes():
    weights = saved(timm.create_model('resnet18_plugin', attn_groups=(1, 1), **SK))
    for groups in (None, 1):
        timm.create_model('resnet18_plugin', attn_groups=groups, **SK).load_state_dict(weights)


@pytest.mark.parametrize(('theirs', 'mine'), [('cbam', 'se'), ('se', 'cbam'), ('eca', 'se')])
def test_what_fits_is_taken_from_weights_whose_keys_show_another_attention(theirs, mine):
    model, other = (timm.create_model('test_resnet_plugin', attn=attn) for attn in (mine, theirs))
    assert model.load_state_dict(saved(other), strict=False).missing_keys
    assert torch.equal(model.fc.weight, other.fc.weight)
    with pytest.raises(RuntimeError, match=r'Missing key'):
        model.load_state_dict(saved(other))


def test_weights_without_attention_or_without_a_word_on_it_are_left_to_the_keys():
    model = timm.create_model('test_resnet_plugin', attn='se', attn_init='identity')
    plain = timm.create_model('test_resnet_plugin')
    assert model.load_state_dict(saved(plain), strict=False).missing_keys
    assert plain.load_state_dict(saved(model), strict=False).unexpected_keys


def test_attention_that_was_added_is_told_by_copies_too_and_no_more_after_its_removal():
    model = timm.create_model('test_resnet')
    add_attention(model, 'se', gate='tanh')
    other = timm.create_model('se_test_resnet_plugin', attn_rd_ratio=1 / 16)
    for network in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match=r"attn_gate='tanh' \(the weights have 'sigmoid'\)"):
            network.load_state_dict(saved(other))
    remove_attention(model)
    model.load_state_dict(saved(timm.create_model('test_resnet')))
    add_attention(model, 'se')
    model.load_state_dict(saved(other))
