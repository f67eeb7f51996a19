"""Gate statistics of one of two processes, for tests/analysis/test_gate_statistics.py."""

import timm
import torch
import torch.distributed as dist
from parity import images, randomised

import timm_se_plugin  # noqa: F401
from timm_se_plugin.analysis import gate_statistics


def save_statistics(folder, mine):
    """Pass the images `mine` of seven to this process's network, and save the statistics of all seven."""
    dist.init_process_group('gloo')
    x, y = images(7, 3, 32, 32, seed=3), torch.tensor([0, 1, 2, 0, 1, 0, 0])
    model = randomised(timm.create_model('sk_test_resnet_plugin', num_classes=3)).double()
    parts = torch.tensor(mine, dtype=torch.long).split(2)
    result = gate_statistics(model, [(x[part], y[part]) for part in parts if len(part)], 'abc')
    torch.save([layer.__dict__ for layer in result.layers], folder / f'{dist.get_rank()}.pt')
    dist.destroy_process_group()
