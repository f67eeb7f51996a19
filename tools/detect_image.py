"""Detect in pictures: weights and pictures in, pictures with boxes and detections.json out.

python tools/detect_image.py faster-rcnn_se-r18_fpn_bccd work_dirs/…/epoch_8.pth cells.jpg more/ --output found
python tools/detect_image.py hf-hub:user/repo cells.jpg more/ --output found
"""

import argparse

from mmengine.config import DictAction

from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.hub import fetch_detector
from timm_se_plugin.detection.inference import detect
from timm_se_plugin.files.hub_files import SAVED_AT


def main() -> None:
    """Read the arguments and detect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a file, the name of one in mmdet_configs, or hf-hub:user/repo for a shared '
                                       'detector, which brings its weights')
    parser.add_argument('paths', nargs='+', metavar='checkpoint, pictures',
                        help='weights of this very detector, unless it is a shared one; pictures, or folders of them')
    parser.add_argument('--output', default='work_dirs/detections', help='folder for what is written')
    parser.add_argument('--score', type=float, default=0.3, help='boxes below it are left out')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    args = parser.parse_args()
    if args.config.startswith(SAVED_AT):
        config, checkpoint = fetch_detector(args.config)
        config.merge_from_dict(args.cfg_options)
        pictures = args.paths
    else:
        if len(args.paths) < 2:
            parser.error('a checkpoint and at least one picture are needed')
        config = read_config(args.config, args.cfg_options)
        checkpoint, *pictures = args.paths
    for result in detect(config, checkpoint, pictures, args.output, args.score, args.device):
        print(f"{result['file']}: {len(result['detections'])} boxes")
    print(f'written to {args.output}')


if __name__ == '__main__':
    main()
