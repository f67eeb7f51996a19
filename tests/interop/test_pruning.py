"""Torch-Pruning's own pruner, without anything of the package around it."""

import copy

import pytest
import timm
import torch

tp = pytest.importorskip('torch_pruning')


def pruned(model, x):
    model = copy.deepcopy(model)
    pruner = tp.pruner.MagnitudePruner(
        model, x, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[model.fc])
    pruner.step()
    return model


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('fused', ['auto', False])
@pytest.mark.parametrize(("name", "timms"), [
    ("se_resnet18_plugin", "seresnet18"), ("se_resnet50_plugin", "seresnet50")])
def test_an_se_network_is_pruned_as_timms(name, timms, fused, x):
    sizes = {'layers': (1, 1, 1, 1), 'channels': (32, 64, 128, 256), 'num_classes': 5}
    reference = timm.create_model(timms, **sizes).eval()
    model = timm.create_model(name, attn_rd_divisor=8, attn_fused=fused, **sizes).eval()
    model.load_state_dict(reference.state_dict())
    found, expected = pruned(model, x), pruned(reference, x)
    assert {key: value.shape for key, value in found.state_dict().items()} == {
        key: value.shape for key, value in expected.state_dict().items()}
    assert parameters(found) < 0.35 * parameters(model)
    with torch.no_grad():
        torch.testing.assert_close(found(x), expected(x), rtol=1e-4, atol=1e-5)


def test_every_kind_of_network_runs_after_it(model, x):
    smaller = pruned(model, x)
    assert parameters(smaller) < 0.5 * parameters(model)
    assert smaller.train()(x).shape == (2, 5)
