"""Measure what attention costs in a detector, against the same detector without attention.

python tools/analyze_detector_cost.py faster-rcnn_se-r50_fpn_1x_coco

Parameters, MACs, and time and memory of a training step. Times are only valid if nothing else runs on the machine.
"""

import argparse
from pathlib import Path

import torch
from mmengine.config import DictAction

from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.cost import CONVENTION, detector_cost
from timm_se_plugin.files.tables import replace_rows


def main() -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='configuration: a file, or the name of one in mmdet_configs')
    parser.add_argument('--batch', type=int, default=2, help='number of pictures')
    parser.add_argument('--height', type=int, default=480, help='height of a picture in pixels')
    parser.add_argument('--width', type=int, default=640, help='width of a picture in pixels')
    parser.add_argument('--rounds', type=int, default=7, help='number of measured steps')
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='change values of the configuration, as in model.backbone.attn=sk')
    parser.add_argument('--output', type=Path, help='CSV table to add the rows to')
    args = parser.parse_args()
    rows = detector_cost(read_config(args.config, args.cfg_options), args.batch, args.height, args.width, args.rounds,
                         args.device, lambda text: print(text, end='\r', flush=True))
    print(f'{CONVENTION}\ntraining step on {args.batch} pictures of {args.height}x{args.width}, '
          f'{args.device}, {torch.get_num_threads()} threads')
    for key in rows[0]:
        print(f'{key:<28}' + ''.join(f'{row[key]:>16,}' if isinstance(row[key], int) else f'{row[key]:>16}'
                                     for row in rows))
    if args.output:
        case = {'config': args.config, 'options': ' '.join(f'{k}={v}' for k, v in args.cfg_options.items()),
                'batch': args.batch, 'height': args.height, 'width': args.width, 'device': args.device}
        replace_rows(args.output, [{**case, **row, 'torch': torch.__version__} for row in rows], [*case, 'model'])


if __name__ == '__main__':
    main()
