"""Measure the time and memory that attention costs, against the plain network, and write them into a table.

Without options every case of the speed table is measured. Any of the options from --base to --split-input chooses one
case, in which the options that are not given stand for resnet50, se, inference, 8 images of 224x224 pixels, nchw and
float32. Rows of the same case in the table are replaced. Times are only valid if nothing else runs on the machine.

With --count nothing is measured: results/traffic.csv says how many bytes a training step moves on a GPU, by a model of
what each operator and kernel reads and writes. The batch has 32 images unless --batch is given.
"""

import argparse
from pathlib import Path
from typing import Any

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('--base', help="name of the plain network, timm's or the plugin's without _plugin")
    parser.add_argument('--attn', choices=('se', 'sk', 'all'),
                        help='attention; all measures every attention, or those that --variants names')
    parser.add_argument('--mode', choices=('inference', 'train', 'frozen'),
                        help='what is measured; frozen is training with BatchNorm on running statistics')
    parser.add_argument('--batch', type=int, help='number of images')
    parser.add_argument('--height', type=int, help='height of an image in pixels')
    parser.add_argument('--width', type=int, help='width of an image in pixels')
    parser.add_argument('--layout', choices=('nchw', 'channels_last'), help='memory format')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16', 'float16'),
                        help='data type of autocast; float32 for no autocast')
    parser.add_argument('--compiled', action='store_true', default=None, help='measure with torch.compile')
    parser.add_argument('--split-input', action='store_true', default=None,
                        help='measure SK with attn_split_input=True')
    parser.add_argument('--variants', nargs='+', default=[],
                        help='measure only these variants, and what they are compared with')
    parser.add_argument('--rounds', type=int, default=15, help='number of measured turns (default: %(default)s)')
    parser.add_argument('--threads', type=int, help="number of PyTorch's threads on the CPU")
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0 (default: %(default)s)')
    parser.add_argument('--output', type=Path, help='table to write into; by default results/speed-<device>.csv')
    parser.add_argument(
        '--count', nargs='*', metavar='BASE',
        help="count bytes instead of measuring, for the plain residual networks of these names of timm; if none is "
             'named, for resnet18, resnet50, resnext50_32x4d and resnet101')


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, print and write, and return the rows of the table.

    Raises:
        ValueError: ``--count`` with an option of a measurement, or as
            :func:`~timm_se_plugin.measuring.benchmark.measure`.
    """
    from dataclasses import asdict, fields

    import torch

    from ..files.tables import check_table, replace_rows
    from ..measuring.benchmark import Case, measure, suite

    if args.count is not None:
        own = {field.name for field in fields(Case)} - {'batch'}
        for name in (*sorted(own), 'variants', 'rounds', 'threads', 'device'):
            if getattr(args, name) != args.parser.get_default(name):
                raise ValueError(f'--count measures nothing, and does not take --{name.replace("_", "-")}; the '
                                 'networks to count follow --count')
        bases = args.count or ['resnet18', 'resnet50', 'resnext50_32x4d', 'resnet101']
        return _count_bytes(bases, 32 if args.batch is None else args.batch, args.output)
    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = {f.name: getattr(args, f.name) for f in fields(Case) if getattr(args, f.name) is not None}
    cases = [Case(**chosen)] if chosen else suite()
    output = args.output or Path(f'results/speed-{args.device.split(":")[0]}.csv')
    check_table(output)
    measured = []
    for i, case in enumerate(cases, start=1):
        print(f'[{i}/{len(cases)}]', ' '.join(f'{k}={v}' for k, v in asdict(case).items()), flush=True)
        rows = measure(case, args.rounds, device=args.device, variants=args.variants)
        for row in rows:
            print(f"  {row['variant']:<14}{row['milliseconds']:>10.1f} ms  x{row['ratio']:.3f}"
                  f" ({row['ratio_q25']:.3f} to {row['ratio_q75']:.3f})  saved bytes {row['saved_bytes_ratio']}")
        replace_rows(output, rows, [*(field.name for field in fields(Case)), 'variant'])
        measured += rows
    return measured


def _count_bytes(bases: list[str], batch: int, output: Path | None) -> list[dict[str, Any]]:
    from ..files.tables import replace_rows
    from ..measuring.traffic import CONVENTION, LAUNCHES, PATHS, block_units, count, tail

    print(CONVENTION)
    for path in PATHS:
        forward, backward = tail(path).totals
        print(f'  end of a block, {path:<18}{forward:>6} forward{backward:>6} backward '
              f'{block_units(path):>6} units a bottleneck')
        for step in (*tail(path).forward, *tail(path).backward):
            print(f'      {step.name:<52}{step.reads:>5} read {step.writes:>5} written')
    print(LAUNCHES)
    counted = []
    for base in bases:
        rows = count(base, batch)
        replace_rows(output or 'results/traffic.csv', rows, ['base', 'batch', 'size', 'layout', 'dtype', 'path'])
        for row in rows:
            print(f"  {base:<18}{row['layout']:<15}{row['dtype']:<10}{row['path']:<18}{row['forward_gb']:>8.2f} GB "
                  f"forward{row['backward_gb']:>8.2f} GB backward  x{row['ratio']:.3f}  tail {row['tail_share']:.0%}")
        counted += rows
    return counted
