"""Detect in pictures, and write each picture with its boxes, and all boxes as JSON, into a folder.

timm-se detect predict faster-rcnn_se-r18_fpn_bccd work_dirs/.../epoch_8.pth cells.jpg more/ --output found
timm-se detect predict hf-hub:user/repo cells.jpg more/ --output found
"""

import argparse
from typing import Any

from .detector_options import add_config

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config(parser, more='; or a shared detector with its weights, as hf-hub:user/repo or local-dir:folder')
    parser.add_argument('paths', nargs='+', metavar='PATH',
                        help='weights, unless the detector is a shared one; then pictures, or folders of pictures')
    parser.add_argument('--output', default='work_dirs/detections', help='folder to write into')
    parser.add_argument('--score', type=float, default=0.3, help='lowest score of a box that is kept')
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0')


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Detect, and return the content of ``detections.json``.

    Raises:
        ValueError: there is no picture among the arguments.
    """
    from ..detection.configs import read_config
    from ..detection.hub import fetch_detector
    from ..detection.inference import detect
    from ..files.hub_files import SAVED_AT

    if args.config.startswith(SAVED_AT):
        config, checkpoint = fetch_detector(args.config)
        config.merge_from_dict(args.cfg_options)
        pictures = args.paths
    else:
        config = read_config(args.config, args.cfg_options)
        checkpoint, *pictures = args.paths
        if not pictures:
            raise ValueError(f'{checkpoint} is the only path given; give a checkpoint and at least one picture')
    results = detect(config, checkpoint, pictures, args.output, args.score, args.device)
    for result in results:
        print(f"{result['file']}: {len(result['detections'])} boxes")
    print(f'written to {args.output}')
    return results
