"""Sharded parameters, and the libraries that drive a training: gradients are those of the network by itself."""

import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn

EXACT = {'rtol': 1e-4, 'atol': 1e-5}


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(model, x):
    """Gradients of the trained network, by name."""
    model.zero_grad()
    model.train()(x).square().sum().backward()


def gradients(model, x):
    trained = copy.deepcopy(model)
    step(trained, x)
    return {name: p.grad for name, p in trained.named_parameters()}


def blocks_of(model):
    return [block for i in range(1, 5) for block in getattr(model, f'layer{i}')]


def test_fsdp1_trains_and_changes_its_type(model, x, process_group):
    from torch.distributed.fsdp import FullyShardedDataParallel
    expected = gradients(model, x)
    wrapped = FullyShardedDataParallel(copy.deepcopy(model), use_orig_params=True, device_id=torch.device('cpu'))
    step(wrapped, x)
    with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
        for name, parameter in wrapped.module.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    wrapped.eval()
    with torch.no_grad():
        before = wrapped(x)
        torch.testing.assert_close(wrapped.double()(x.double()).float(), before, **EXACT)
        assert wrapped.cpu().bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_fsdp2_trains(model, x, process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    expected = gradients(model, x)
    mesh = init_device_mesh('cpu', (1,))
    sharded = copy.deepcopy(model)
    for block in blocks_of(sharded):
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    step(sharded, x)
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_parameters_that_are_there_only_while_their_module_runs(model, x):
    """As with DeepSpeed's ZeRO-3: hooks of each module fetch its own parameters, and empty them after it."""
    with torch.no_grad():
        expected = model(x)
    kept = {}

    def fetch(module, args):
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = kept[module, name]

    def release(module, args, output):
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = torch.empty(0)

    placeholders = copy.deepcopy(model)
    for module in placeholders.modules():
        own = dict(module.named_parameters(recurse=False))
        if own:
            kept.update({(module, name): parameter.data for name, parameter in own.items()})
            module.register_forward_pre_hook(fetch)
            module.register_forward_hook(release)
            release(module, None, None)
    assert sum(p.numel() for p in placeholders.parameters()) == 0
    placeholders.double().float()
    with torch.no_grad():
        torch.testing.assert_close(placeholders(x), expected, **EXACT)


def test_accelerate_trains(model, x):
    accelerate = pytest.importorskip('accelerate')
    expected = gradients(model, x)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.1))
    loss = prepared.train()(x).square().sum()
    accelerator.backward(loss)
    for name, parameter in accelerator.unwrap_model(prepared).named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)
    optimizer.step()


def test_lightning_trains(model, x, tmp_path):
    lightning = pytest.importorskip('lightning')

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = copy.deepcopy(model)

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    task = Task()
    task.model.train()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.tensor([0, 1])), 2)
    trainer = lightning.Trainer(max_epochs=2, accelerator='cpu', logger=False, enable_progress_bar=False,
                                enable_model_summary=False, default_root_dir=tmp_path)
    trainer.fit(task, data)
    by_hand = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(x), torch.tensor([0, 1])).backward()
        optimizer.step()
    for (name, found), wanted in zip(task.model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, msg=name)
    loaded = Task.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert torch.equal(loaded.model.conv1.weight, task.model.conv1.weight)
