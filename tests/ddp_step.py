"""One training step of an SE and an SK network in two processes; run by tests/models/test_distributed.py."""

import sys

import timm
import torch
import torch.distributed as dist
from parity import images, randomised
from torch.nn.parallel import DistributedDataParallel

import timm_se_plugin  # noqa: F401

torch.set_num_threads(1)
dist.init_process_group('gloo')
rank = dist.get_rank()
for name in ('se_test_resnet_plugin', 'sk_test_resnet_plugin'):
    model = randomised(timm.create_model(name, num_classes=5)).double()
    x = images(4, 3, 48, 48, seed=7)
    alone = []
    for part in x.chunk(2):  # the gradient that the two processes should agree on: the mean of their own
        model.zero_grad()
        model(part).square().mean().backward()
        alone.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad()
    parallel = DistributedDataParallel(model)
    parallel(x.chunk(2)[rank]).square().mean().backward()
    for p, first, second in zip(model.parameters(), *alone, strict=True):
        torch.testing.assert_close(p.grad, (first + second) / 2, rtol=1e-9, atol=1e-12)
dist.destroy_process_group()
sys.exit(0)
