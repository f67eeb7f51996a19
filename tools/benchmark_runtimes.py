"""Measure inference in eager PyTorch, torch.compile, ONNX Runtime and OpenVINO: plain network, timm's and the plugin's.

The tool needs the [interop] extra. Nothing else may run on the machine meanwhile. Rows of the same network and runtime
in the table are replaced.
"""

import argparse
from pathlib import Path

import torch

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.files.tables import replace_rows
from timm_se_plugin.measuring.runtimes import NETWORKS, RUNTIMES, measure_runtime


def main() -> None:
    """Read the options, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=tuple(NETWORKS), default=list(NETWORKS), help='default: all')
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES), help='default: all')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8], help='numbers of images (default: 1 8)')
    parser.add_argument('--size', type=int, default=224, help='height and width of an image (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=15, help='number of measured turns (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=2, help='threads of every runtime (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('results/runtimes-cpu.csv'), help='default: %(default)s')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for network in args.networks:
        for runtime in args.runtimes:
            rows = measure_runtime(network, runtime, tuple(args.batches), args.size, args.rounds)
            replace_rows(args.output, rows, ['network', 'runtime', 'batch', 'size', 'variant'])
            for row in rows:
                print(f"{network}  {runtime:<20} batch {row['batch']}  {row['variant']:<14}"
                      f"{row['milliseconds']:>9} ms  x{row['ratio']} ({row['ratio_q25']} to {row['ratio_q75']})",
                      flush=True)


if __name__ == '__main__':
    main()
