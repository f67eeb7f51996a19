"""The contract of test_contract.py for the networks that are no ResNets, and what is theirs alone."""

import copy
import pickle

import pytest
import timm
import torch
from networks import FAMILY_NAMES, family_bases, few_blocks
from parity import images, most_calls, randomised, relative_error
from timm.models import FeatureGraphNet, FeatureHookNet, FeatureListNet, save_for_hf
from torch import fx

from timm_se_plugin import AttentionSpec, add_attention, remove_attention
from timm_se_plugin.models._registry import architectures
from timm_se_plugin.placement import attention_modules

SIZE = 96  # the Inceptions' stems take no smaller image
# Of BiT, whose depth timm fixes, the least network alone.
BASES = [pytest.param(base, marks=[] if base in FAMILY_NAMES else pytest.mark.slow) for base in family_bases()
         if base == 'resnetv2_50x1_bit' or not base.endswith('_bit')]


def create(name, base, **kwargs):
    return timm.create_model(name, **{**few_blocks(base), **kwargs})


def plain_twin(base, **kwargs):
    """timm's own network; of one that timm has not, the plugin's without attention."""
    return create(base if timm.is_model(base) else f'{base}_plugin', base, **kwargs)


class One(torch.nn.Module):
    def forward(self, x):
        return torch.ones_like(x)


@pytest.fixture(scope='module', params=BASES)
def base(request):
    return request.param


@pytest.fixture(scope='module')
def network(base):
    """SE in the network, with weights that matter, in evaluation; not to be changed."""
    torch.manual_seed(0)
    return randomised(create(f'se_{base}_plugin', base, num_classes=7)).eval()


@pytest.fixture(scope='module')
def x():
    return images(2, 3, SIZE, SIZE, dtype=torch.float32)


@pytest.fixture(scope='module')
def expected(network, x):
    with torch.no_grad():
        return network(x)


def test_every_parameter_learns_with_and_without_checkpointing(network, base, x):
    model = copy.deepcopy(network).train()
    gradients = []
    for enable in (False, True):
        try:
            model.set_grad_checkpointing(enable)
        except AssertionError:  # timm's network can't
            with pytest.raises(AssertionError):
                plain_twin(base).set_grad_checkpointing()
            continue
        model.zero_grad()
        torch.manual_seed(0)
        out = model(x)
        assert out.isfinite().all()
        out.square().mean().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        gradients.append([p.grad.clone() for p in model.parameters()])
    for grads in gradients[1:]:
        torch.testing.assert_close(grads, gradients[0], rtol=1e-3, atol=1e-4)
        assert most_calls(model, x) == 2  # in the backward pass, blocks are computed again


def test_gates_forced_to_one_give_timms_network(network, base, x):
    plain = plain_twin(base, num_classes=7).eval()
    plain.load_state_dict({key: value for key, value in network.state_dict().items() if '.se.' not in key})
    model = copy.deepcopy(network)
    for attention in attention_modules(model).values():
        attention.gate = One()
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))


def test_keys_are_timms_and_removal_gives_timms_network(network, base, x):
    plain = plain_twin(base, num_classes=7).eval()
    model = copy.deepcopy(network)
    added = set(model.state_dict()) - set(plain.state_dict())
    assert added == {f'{name}.{key}' for name, layer in attention_modules(model).items() for key in layer.state_dict()}
    assert plain.state_dict().keys() <= model.state_dict().keys()
    removed = remove_attention(model)
    assert removed.keys() == attention_modules(network).keys()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()][1:] == [type(m) for m in plain.modules()][1:]
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert list(add_attention(model)) == list(removed)


def test_scripted_network_is_equal(base, x):
    model = randomised(create(f'se_{base}_plugin', base, num_classes=7, scriptable=True)).eval()
    with torch.no_grad():
        assert relative_error(torch.jit.script(model)(x), model(x)) < 1e-4


def test_fx_graph_is_equal(network, base, x, expected):
    try:
        fx.symbolic_trace(plain_twin(base))
    except fx.proxy.TraceError:
        pytest.skip("timm's network looks at shapes, which fx can't trace")
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(network)(x), expected)


def test_exported_program_is_equal(network, x, expected):
    with torch.no_grad():
        assert relative_error(torch.export.export(network, (x,)).module()(x), expected) < 1e-4


def test_copies_are_equal(network, x, expected):
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(network)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)


def test_every_way_to_features_gives_the_same(network, base, x):
    """Wrappers that take a network apart, hook it, trace it; the flag's own way; and forward_intermediates."""
    model = create(f'se_{base}_plugin', base, features_only=True).eval()
    assert len(attention_modules(model)) > 0
    levels = tuple(range(len(network.feature_info)))
    with torch.no_grad():
        final, intermediates = network.forward_intermediates(x)
        torch.testing.assert_close(final, network.forward_features(x))
        assert [f.shape[1] for f in intermediates] == [level['num_chs'] for level in network.feature_info]
        assert [f.shape[1] for f in model(x)] == model.feature_info.channels()
        ways = {
            'hook': FeatureHookNet(copy.deepcopy(network), levels),
            'graph': FeatureGraphNet(copy.deepcopy(network), levels)}
        if 'xception' not in base:  # timm's own list can't
            feature_cfg = architectures[f'{base}_plugin'].feature_cfg
            ways['list'] = FeatureListNet(
                copy.deepcopy(network), levels, flatten_sequential=feature_cfg.get('flatten_sequential', False))
        for way, net in ways.items():
            for level, (found, wanted) in enumerate(zip(net(x), intermediates, strict=True)):
                assert relative_error(found, wanted) < 1e-5, (way, level)


def test_classifier_can_be_reset_and_left_out(network, base, x):
    model = copy.deepcopy(network)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features
        model.reset_classifier(5)
        assert model(x).shape == (2, 5)
        model.reset_classifier(0)
        assert model(x).shape == (2, model.head_hidden_size)
        assert create(f'se_{base}_plugin', base, in_chans=1, num_classes=4).eval()(x[:, :1]).shape == (2, 4)


def test_saved_folder_reproduces_the_network(network, x, expected, tmp_path):
    save_for_hf(network, tmp_path, safe_serialization=True)
    reloaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert AttentionSpec.of(reloaded) == AttentionSpec('se')
    with torch.no_grad():
        assert torch.equal(reloaded(x), expected)


def test_configuration_names_the_first_convolution_and_the_classifier(network, base):
    cfg = timm.get_pretrained_cfg(f'se_{base}_plugin')
    assert f'{cfg.classifier}.weight' in network.state_dict()
    for name in [cfg.first_conv] if isinstance(cfg.first_conv, str) else cfg.first_conv:
        assert f'{name}.weight' in network.state_dict()
