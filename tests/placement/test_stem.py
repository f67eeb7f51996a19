"""The fused stem of timm's ResNets against the modules, in float64, and the class of the network."""

import copy
import pickle

import pytest
import timm
import torch
from parity import gradients, images, randomised, relative_error, set_mode
from timm.models.resnet import ResNet
from torch import nn

import timm_se_plugin
from timm_se_plugin.models._cifar_networks import CifarResNet
from timm_se_plugin.placement import stem

NAMES = {'se_resnet18_plugin': 1, 'se_resnet50d_plugin': 3, 'sk_resnet20_cifar_plugin': 1}  # convolutions of the stem


@pytest.fixture
def fused_stems(monkeypatch):
    calls = []
    original = stem.norm_act
    monkeypatch.setattr(stem, 'norm_act', lambda *args: (calls.append(args[1]), original(*args))[1])
    return calls


def build(name, **kwargs):
    layers = (1, 1, 1) if 'cifar' in name else (1, 1, 1, 1)
    return timm.create_model(name, layers=layers, num_classes=5, **kwargs)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('mode', ['train', 'frozen', 'eval'])
def test_the_stem_is_what_its_modules_are(name, mode, fused_stems):
    fused = randomised(build(name)).double()
    plain = build(name, attn_fused=False).double()
    plain.load_state_dict(fused.state_dict())
    x = images(2, 3, 33, 32)
    results = []
    fused_stems.clear()
    for model in (fused, plain):
        set_mode(model, mode)
        results.append(gradients(model, x))
        assert len(fused_stems) == NAMES[name]  # by the first network alone
    (out, grads), (expected_out, expected) = results
    assert relative_error(out, expected_out) < 1e-10
    assert all(relative_error(grads[key], expected[key]) < 1e-8 for key in expected)
    with torch.no_grad():
        assert relative_error(fused.eval()(x), plain.eval()(x)) < 1e-10
        for mine, theirs in zip(fused.forward_intermediates(x)[1], plain.forward_intermediates(x)[1], strict=True):
            assert relative_error(mine, theirs) < 1e-10


@pytest.mark.parametrize('change', [
    lambda model: setattr(model, 'conv1', nn.Sequential(nn.AvgPool2d(2), model.conv1)),
    lambda model: setattr(model, 'act1', nn.Sequential(model.act1, nn.Dropout(0.5))),
    lambda model: setattr(model, 'bn1', nn.GroupNorm(4, 64)),
    lambda model: model.bn1.register_forward_hook(lambda module, args, out: 2 * out),
    lambda model: model.act1.register_forward_hook(lambda module, args, out: out + 1),
    lambda model: model.conv1.register_forward_hook(lambda module, args, out: out.mul(3)),
], ids=['more layers', 'another activation', 'another norm', 'hook on the norm', 'hook on the activation',
        'hook on the convolution'])
def test_a_stem_that_was_changed_computes_what_its_modules_compute(change):
    model = build('se_resnet18_plugin')
    change(model)
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    features = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    for part in (model.layer1, model.layer2, model.layer3, model.layer4):
        features = part(features)
    with torch.no_grad():
        assert relative_error(model.forward_features(x), features) < 1e-6


def test_the_class_of_the_network_follows_the_blocks():
    kinds = {name: type(build('resnet18_plugin', **options)) for name, options in {
        'plain': {}, 'fused': {'attn': 'se'}, 'by modules': {'attn': 'se', 'attn_fused': False},
        'plain fused': {'attn_fused': True}}.items()}
    assert kinds == {'plain': ResNet, 'fused': stem.FusedStemResNet, 'by modules': ResNet,
                     'plain fused': stem.FusedStemResNet}
    model = timm.create_model('resnet20_cifar_plugin')
    container = nn.ModuleDict({'backbone': model})
    timm_se_plugin.add_attention(container, 'se', input_size=(3, 32, 32))
    assert isinstance(model, CifarResNet)
    assert isinstance(model, stem.FusedStemResNet)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied) is type(model)
    timm_se_plugin.remove_attention(container)
    assert type(model) is CifarResNet


def test_scripts_and_exports():
    model, x = build('se_resnet50d_plugin').eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        with pytest.warns(FutureWarning, match='deprecated'):
            assert relative_error(torch.jit.script(model)(x), expected) < 1e-5
        assert relative_error(torch.export.export(model, (x,)).module()(x), expected) < 1e-5
