"""Measure what attention costs in a detector, against the same detector without attention.

timm-se detect cost faster-rcnn_se-r50_fpn_1x_coco

Parameters, MACs, and time and memory of a training step. Times are only valid if nothing else runs on the machine.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from .detector_options import add_config, options_text

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config(parser)
    parser.add_argument('--batch', type=int, default=2, help='number of pictures (default: %(default)s)')
    parser.add_argument('--height', type=int, default=480, help='height of a picture in pixels (default: %(default)s)')
    parser.add_argument('--width', type=int, default=640, help='width of a picture in pixels (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=7, help='number of measured steps (default: %(default)s)')
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0 (default: %(default)s)')
    parser.add_argument('--output', type=Path, help='CSV table to add the rows to')


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure and print, and return a row for the plain detector and one for the detector with attention."""
    import torch

    from ..detection.configs import read_config
    from ..detection.cost import CONVENTION, detector_cost
    from ..files.tables import check_table, replace_rows

    if args.output:
        check_table(args.output)

    def report(text: str) -> None:
        if sys.stdout.isatty():
            print(text, end='\r', flush=True)

    rows = detector_cost(read_config(args.config, args.cfg_options), args.batch, args.height, args.width, args.rounds,
                         args.device, report)
    print(f'{CONVENTION}\ntraining step on {args.batch} pictures of {args.height}x{args.width}, '
          f'{args.device}, {torch.get_num_threads()} threads')
    for key in rows[0]:
        print(f'{key:<28}' + ''.join(f'{row[key]:>16,}' if isinstance(row[key], int) else f'{row[key]:>16}'
                                     for row in rows))
    print('step_seconds is the median of the steps; step_ratio is the median of the ratios of two steps in turn, and '
          'need not be the ratio of the two medians')
    if args.output:
        case = {'config': args.config, 'options': options_text(args.cfg_options),
                'batch': args.batch, 'height': args.height, 'width': args.width}
        replace_rows(args.output, [{**case, **row} for row in rows], [*case, 'device', 'model'])
    return rows
