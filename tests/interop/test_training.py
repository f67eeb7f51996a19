"""Parameters that come and go, and libraries that drive a training; tests/models has DDP and FSDP."""

import copy

import pytest
import torch
from torch import nn

EXACT = {'rtol': 1e-4, 'atol': 1e-5}


def gradients(model, x):
    """Gradients of the network by itself, by name."""
    trained = copy.deepcopy(model)
    trained.train()(x).square().sum().backward()
    return {name: p.grad for name, p in trained.named_parameters()}


def test_parameters_that_are_there_only_while_their_module_runs(model, x):
    """As with DeepSpeed's ZeRO-3: hooks of each module fetch its own parameters, and empty them after it."""
    with torch.no_grad():
        expected = model(x)
    kept = {}

    def fetch(module, args):
        for name, parameter in module.named_parameters(recurse=False):
            parameter.data = kept[module, name]

    def release(module, args, output):
        for parameter in module.parameters(recurse=False):
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


@pytest.mark.filterwarnings('ignore')  # Lightning's own
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
