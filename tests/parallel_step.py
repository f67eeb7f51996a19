"""One training step in two processes, by DDP, FSDP1 and FSDP2; run by tests/interop/test_distributed.py."""

import copy
import gc

import timm
import torch
import torch.distributed as dist
from parity import images, randomised
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from timm_se_plugin import add_attention


def networks():
    """SE and SK, built with it, and SE that was added."""
    sizes = {'num_classes': 5}
    yield timm.create_model('se_test_resnet_plugin', **sizes)
    yield timm.create_model('sk_test_resnet_plugin', **sizes)
    gained = timm.create_model('resnet18', layers=(1, 1, 1, 1), channels=(16, 32, 64, 128), **sizes)
    add_attention(gained, 'se')
    yield gained


def train(model, x):
    model(x).square().mean().backward()


def check(network, mesh):
    """Compare each way to share the work with the means of the two processes' own gradients."""
    model = randomised(network).double()
    x = images(4, 3, 48, 48, seed=7)
    alone = []
    for part in x.chunk(2):  # the gradient that the two processes should agree on: the mean of their own
        model.zero_grad()
        train(model, part)
        alone.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad()
    expected = {name: (first + second) / 2 for (name, _), first, second in zip(
        model.named_parameters(), *alone, strict=True)}
    mine = x.chunk(2)[dist.get_rank()]

    parallel = DistributedDataParallel(copy.deepcopy(model))
    train(parallel, mine)
    for name, p in parallel.module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)

    wrapped = FullyShardedDataParallel(copy.deepcopy(model), use_orig_params=True, device_id=torch.device('cpu'))
    train(wrapped, mine)
    with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
        for name, p in wrapped.module.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        wanted = model.eval()(mine)
        for change, dtype, tolerance in (
                (lambda m: m.cpu().double(), torch.float64, 1e-9), (lambda m: m.float(), torch.float32, 1e-4),
                (lambda m: m.bfloat16(), torch.bfloat16, 1e-1)):
            changed = change(FullyShardedDataParallel(copy.deepcopy(model), device_id=torch.device('cpu')))
            found = changed(mine.to(dtype))
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    model.train()

    sharded = copy.deepcopy(model)
    for stage in (sharded.layer1, sharded.layer2, sharded.layer3, sharded.layer4):
        for block in stage:
            fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    train(sharded, mine)
    for name, p in sharded.named_parameters():
        torch.testing.assert_close(p.grad.full_tensor(), expected[name], rtol=1e-9, atol=1e-12)


torch.set_num_threads(1)
dist.init_process_group('gloo')
mesh = init_device_mesh('cpu', (2,))
for network in networks():
    check(network, mesh)
gc.collect()        # a process must not end while a thread of a wrapped network waits for the other process
dist.barrier()
dist.destroy_process_group()
