"""Draw pictures of a test set, with the annotated boxes on the left and the detected ones on the right.

python tools/compare_detections.py faster-rcnn_se-r18_fpn_bccd <checkpoint> --output results/bccd-detections.jpg
"""

import argparse

from mmengine.config import DictAction

from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.inference import compare


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='configuration: a file, or the name of one in mmdet_configs')
    parser.add_argument('checkpoint', help='weights of the detector')
    parser.add_argument('--output', default='work_dirs/comparison.png', help='picture file to write')
    parser.add_argument('--count', type=int, default=6, help='number of pictures')
    parser.add_argument('--score', type=float, default=0.5, help='lowest score of a detection that is drawn')
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='change values of the configuration, as in model.backbone.attn=sk')
    args = parser.parse_args()
    compare(read_config(args.config, args.cfg_options), args.checkpoint, args.output, args.count, args.score,
            args.device)
    print(f'written to {args.output}')


if __name__ == '__main__':
    main()
