"""PEFT's adapters, and parametrisations, on the excitation and on the network around it."""

import copy

import pytest
import timm
import torch
from interop_networks import NETWORKS
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from timm_se_plugin import add_attention, fuse_for_inference, remove_attention
from timm_se_plugin.placement import attention_modules

EXACT = {'rtol': 1e-4, 'atol': 1e-5}


@pytest.fixture(params=['se_resnet18', 'se_resnet50', 'gained'])
def excited(request):
    """Each kind of network that has an excitation."""
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def test_lora_on_the_excitation_learns_and_is_deployed(excited, x):
    peft = pytest.importorskip('peft')
    adapted = peft.get_peft_model(copy.deepcopy(excited), peft.LoraConfig(
        r=2, target_modules=r'.*\.se\.(fc1|fc2)', init_lora_weights=False))
    adapted.train()(x).square().sum().backward()
    learning = {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learning
    assert all('lora_' in name for name in learning)
    adapted.eval()
    inner = adapted.base_model.model
    with torch.no_grad():
        expected = adapted(x)
        assert not torch.allclose(expected, excited(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fuse_for_inference(inner)(x), expected, **EXACT)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(x), expected, **EXACT)
        torch.testing.assert_close(fuse_for_inference(merged)(x), expected, **EXACT)


@pytest.mark.parametrize('layer', ['se.fc1', 'conv1', 'conv2'])
def test_a_parametrised_layer_is_used_as_it_is(excited, layer, x):
    changed = copy.deepcopy(excited)
    target = changed.layer1[0].get_submodule(layer)
    parametrize.register_parametrization(target, 'weight', Halved())
    by_hand = copy.deepcopy(excited)
    with torch.no_grad():
        by_hand.layer1[0].get_submodule(layer).weight.mul_(0.5)
        torch.testing.assert_close(changed(x), by_hand(x), **EXACT)
        torch.testing.assert_close(fuse_for_inference(changed)(x), by_hand(x), **EXACT)


class Halved(nn.Module):
    def forward(self, weight):
        return 0.5 * weight


@pytest.mark.parametrize('order', ['attention last', 'attention first'])
def test_parametrisations_and_attention_come_and_go_in_either_order(order, x):
    model = timm.create_model('resnetv2_18', layers=(1, 1, 1, 1)).eval()
    sites = r'stages\.\d\.blocks\.0\.conv2'
    with torch.no_grad():
        expected = model(x)
        for _ in range(2):
            convolutions = [model.get_submodule(f'stages.{i}.blocks.0.conv2') for i in range(4)]
            if order == 'attention last':
                for conv in convolutions:
                    parametrizations.weight_norm(conv)
            add_attention(model, 'se', sites=sites, init='identity')
            if order == 'attention first':
                for conv in convolutions:
                    parametrizations.weight_norm(conv)
            torch.testing.assert_close(model(x), expected, **EXACT)
            if order == 'attention last':
                for conv in convolutions:
                    parametrize.remove_parametrizations(conv, 'weight')
                remove_attention(model)
            else:
                remove_attention(model)
                for conv in convolutions:
                    parametrize.remove_parametrizations(conv, 'weight')
            torch.testing.assert_close(model(x), expected, **EXACT)
            assert not attention_modules(model)
