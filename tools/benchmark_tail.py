"""Measure the end of a residual block, fused and module by module, on maps of many sizes on the CPU.

``attn_fused='auto'`` fuses from the sizes of ``_WORTHWHILE`` in layers/residual_tail.py on, which follow from
results/tail-cpu.csv. Nothing else may run on the machine meanwhile.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from timm_se_plugin.files.tables import write_table
from timm_se_plugin.layers import SqueezeExcite
from timm_se_plugin.layers.norm_act import norm_act
from timm_se_plugin.layers.residual_tail import residual_tail
from timm_se_plugin.measuring.benchmark import LAYOUTS
from timm_se_plugin.measuring.provenance import provenance
from timm_se_plugin.measuring.turns import time_in_turns

SHAPES = [
    (128, 16, 32), (128, 32, 16), (128, 64, 8), (16, 64, 32), (16, 128, 16), (16, 256, 8), (16, 512, 4), (8, 64, 56),
    (8, 128, 28), (8, 256, 14), (8, 512, 7), (1, 256, 56), (1, 512, 28), (1, 1024, 14), (1, 2048, 7), (8, 256, 56),
    (8, 512, 28), (8, 1024, 14), (8, 2048, 7)]


def steps(
        batch: int, channels: int, size: int, mode: str, dtype: torch.dtype, layout: str,
) -> dict[str, Callable[[], Any]]:
    """One step of the modules, and one of the fused tail."""
    training = mode == 'train'
    bn, se, act = nn.BatchNorm2d(channels).train(training), SqueezeExcite(channels), nn.ReLU(inplace=True)
    y, shortcut, grad = (torch.randn(batch, channels, size, size, dtype=dtype).contiguous(
        memory_format=LAYOUTS[layout]) for _ in range(3))
    conv = nn.Conv2d(channels, channels, 1)  # passed as the module that has just computed x

    def modules(x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        x = se(norm_act(x, bn, None, conv))
        x += added
        return act(x)

    def fused(x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
        return residual_tail(x, added, bn, se, None, act, conv=conv)

    def step(tail: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        autocast = torch.autocast('cpu', dtype) if dtype != torch.float32 else nullcontext()
        if not training:
            with torch.inference_mode(), autocast:
                tail(y.clone(memory_format=torch.preserve_format), shortcut)
            return
        x, added = y.detach().requires_grad_(), shortcut.detach().requires_grad_()
        with autocast:
            out = tail(x * 1, added)
        out.backward(grad)

    return {'modules': lambda: step(modules), 'fused': lambda: step(fused)}


def measure(
        rounds: int, batch: int, channels: int, size: int, mode: str, dtype: torch.dtype, layout: str,
) -> dict[str, Any]:
    """A row of the table: medians of milliseconds, and of their ratio."""
    both = steps(batch, channels, size, mode, dtype, layout)
    repeats = max(1, 2**20 // (batch * channels * size**2))

    def repeat(step: Callable[[], Any]) -> None:
        for _ in range(repeats):
            step()

    seconds = time_in_turns({name: partial(repeat, step) for name, step in both.items()}, rounds)
    modules, fused = seconds['modules'], seconds['fused']
    return {
        'batch': batch, 'channels': channels, 'size': size, 'mode': mode, 'dtype': str(dtype).removeprefix('torch.'),
        'layout': layout, 'elements': batch * channels * size**2,
        'modules_ms': round(1e3 * statistics.median(modules) / repeats, 3),
        'fused_ms': round(1e3 * statistics.median(fused) / repeats, 3),
        'ratio': round(statistics.median(f / m for f, m in zip(fused, modules, strict=True)), 3),
        **provenance(torch.device('cpu'))}


def main() -> None:
    """Read the options, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9, help='number of measured turns (default: %(default)s)')
    parser.add_argument('--threads', type=int, help="number of PyTorch's threads")
    parser.add_argument('--output', type=Path, default=Path('results/tail-cpu.csv'), help='default: %(default)s')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    for mode, dtype, layout, shape in product(('train', 'inference'), (torch.float32, torch.bfloat16), LAYOUTS, SHAPES):
        rows.append(measure(args.rounds, *shape, mode, dtype, layout))
        print(' '.join(f'{key}={rows[-1][key]}' for key in ('mode', 'dtype', 'layout', 'batch', 'channels', 'size',
                                                           'elements', 'modules_ms', 'ratio')), flush=True)
    write_table(args.output, rows)


if __name__ == '__main__':
    main()
