"""Training on real images: the fused and the plain path follow the same losses."""

import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import timm_se_plugin  # noqa: F401


@pytest.mark.parametrize('name', [
    'se_test_resnet_plugin', pytest.param('sk_test_resnet_plugin', marks=pytest.mark.slow)])
def test_fifty_steps_on_digits_have_the_same_losses_on_both_paths(name):
    pixels, labels = load_digits(return_X_y=True)
    x = F.interpolate(torch.from_numpy(pixels).view(-1, 1, 8, 8) / 16, size=32)
    y = torch.from_numpy(labels)
    losses = {}
    for fused in ('auto', False):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, in_chans=1, attn_fused=fused).double().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses[fused] = []
        for step in range(50):
            batch = slice(16 * step, 16 * step + 16)
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[fused].append(loss.detach())
    curve, expected = torch.stack(losses['auto']), torch.stack(losses[False])
    assert expected[-10:].mean() < 0.7 * expected[:5].mean()  # it does learn
    torch.testing.assert_close(curve, expected, rtol=1e-6, atol=1e-8)
