"""Measure what attention costs against the plain network; writes results/speed-<device>.csv.

Nothing else may run on the machine meanwhile. Without options every case of the speed table is measured; with any of
the case's options that case alone. Rows of the same case in the file are replaced.
"""

import argparse
from dataclasses import asdict, fields
from pathlib import Path

import torch

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.files.tables import replace_rows
from timm_se_plugin.measuring.benchmark import DTYPES, LAYOUTS, MODES, Case, measure, suite


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--base', help="timm's name of the plain network")
    parser.add_argument('--attn', choices=('se', 'sk'))
    parser.add_argument('--mode', choices=MODES)
    parser.add_argument('--batch', type=int)
    parser.add_argument('--height', type=int)
    parser.add_argument('--width', type=int)
    parser.add_argument('--layout', choices=tuple(LAYOUTS))
    parser.add_argument('--dtype', choices=tuple(DTYPES), help='of autocast')
    parser.add_argument('--compiled', action='store_true', default=None)
    parser.add_argument('--split-input', action='store_true', default=None)
    parser.add_argument('--variants', nargs='+', default=[], help='measure these alone (with what they refer to)')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--threads', type=int, help='of the CPU')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', type=Path)
    args = parser.parse_args()

    if args.threads:
        torch.set_num_threads(args.threads)
    chosen = {f.name: getattr(args, f.name) for f in fields(Case) if getattr(args, f.name) is not None}
    cases = [Case(**chosen)] if chosen else suite()
    output = args.output or Path(f'results/speed-{args.device.split(":")[0]}.csv')
    for i, case in enumerate(cases, start=1):
        print(f'[{i}/{len(cases)}]', ' '.join(f'{k}={v}' for k, v in asdict(case).items()), flush=True)
        rows = measure(case, args.rounds, device=args.device, variants=args.variants)
        for row in rows:
            print(f"  {row['variant']:<14}{row['milliseconds']:>10.1f} ms  x{row['ratio']:.3f}"
                  f" ({row['ratio_q25']:.3f} to {row['ratio_q75']:.3f})  saved bytes {row['saved_bytes_ratio']}")
        replace_rows(output, rows, [*(field.name for field in fields(Case)), 'variant'])


if __name__ == '__main__':
    main()
