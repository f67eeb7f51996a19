"""What attention costs in a detector: parameters, MACs, time and memory of a training step against the plain twin.

python tools/analyze_detector_cost.py faster-rcnn_se-r50_fpn_1x_coco

Nothing else may run on the machine meanwhile, if the times are to mean something.
"""

import argparse
import csv
from pathlib import Path

import torch
from mmengine.config import DictAction

from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.cost import CONVENTION, detector_cost


def main() -> None:
    """Read the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a file, or the name of one in mmdet_configs')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--height', type=int, default=480)
    parser.add_argument('--width', type=int, default=640)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    parser.add_argument('--output', type=Path, help='CSV file to write too')
    args = parser.parse_args()
    rows = detector_cost(read_config(args.config, args.cfg_options), args.batch, args.height, args.width, args.rounds,
                         args.device, lambda text: print(text, end='\r', flush=True))
    print(f'{CONVENTION}\ntraining step on {args.batch} pictures of {args.height}x{args.width}, '
          f'{args.device}, {torch.get_num_threads()} threads')
    for key in rows[0]:
        print(f'{key:<28}' + ''.join(f'{row[key]:>16,}' if isinstance(row[key], int) else f'{row[key]:>16}'
                                     for row in rows))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open('w', newline='') as file:
            writer = csv.DictWriter(file, ['config', 'batch', 'height', 'width', 'device', 'torch', *rows[0]],
                                    lineterminator='\n')
            writer.writeheader()
            writer.writerows({'config': args.config, 'batch': args.batch, 'height': args.height, 'width': args.width,
                              'device': args.device, 'torch': torch.__version__, **row} for row in rows)


if __name__ == '__main__':
    main()
