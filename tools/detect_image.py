"""Detect in pictures, and write each picture with its boxes, and detections.json, into a folder.

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
    parser.add_argument('config', help='configuration: a file, or the name of one in mmdet_configs; or a shared '
                                       'detector with its weights, as hf-hub:user/repo')
    parser.add_argument('paths', nargs='+', metavar='checkpoint, pictures',
                        help='weights, unless the detector is a shared one; then pictures, or folders of pictures')
    parser.add_argument('--output', default='work_dirs/detections', help='folder to write into')
    parser.add_argument('--score', type=float, default=0.3, help='lowest score of a box that is kept')
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='change values of the configuration, as in model.backbone.attn=sk')
    args = parser.parse_args()
    if args.config.startswith(SAVED_AT):
        config, checkpoint = fetch_detector(args.config)
        config.merge_from_dict(args.cfg_options)
        pictures = args.paths
    else:
        if len(args.paths) < 2:
            parser.error('give a checkpoint and at least one picture')
        config = read_config(args.config, args.cfg_options)
        checkpoint, *pictures = args.paths
    for result in detect(config, checkpoint, pictures, args.output, args.score, args.device):
        print(f"{result['file']}: {len(result['detections'])} boxes")
    print(f'written to {args.output}')


if __name__ == '__main__':
    main()
