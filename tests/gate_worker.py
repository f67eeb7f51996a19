"""Gate statistics of one of two processes; run by tests/analysis/test_gate_statistics.py."""

import sys

import timm
import torch
import torch.distributed as dist
from parity import images, randomised

import timm_se_plugin  # noqa: F401
from timm_se_plugin.analysis import gate_statistics

torch.set_num_threads(1)
dist.init_process_group('gloo')
rank = dist.get_rank()
x, y = images(7, 3, 32, 32, seed=3), torch.tensor([0, 1, 2, 0, 1, 0, 0])
shares = {'uneven': [[0, 1, 2, 3, 4], [5, 6]], 'one': [[], range(7)]}[sys.argv[2]]
mine = torch.tensor(list(shares[rank]), dtype=torch.long)
model = randomised(timm.create_model('sk_test_resnet_plugin', num_classes=3)).double()
result = gate_statistics(model, [(x[part], y[part]) for part in mine.split(2) if len(part)], 'abc')
torch.save([layer.__dict__ for layer in result.layers], f'{sys.argv[1]}/{rank}.pt')
dist.destroy_process_group()
