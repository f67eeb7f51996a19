"""Detect in pictures, and write each picture with its boxes, and all boxes as JSON and CSV, into a folder.

timm-se detect predict pictures/ --model work_dirs/RUN --output found
timm-se detect predict cells.jpg more/ --model hf-hub:user/repo --output found
timm-se detect predict pictures/ --model cells.onnx --output found
timm-se detect predict faster-rcnn_se-r18_fpn_bccd work_dirs/RUN/epoch_8.pth cells.jpg more/ --output found

Folders are searched with the folders in them. A file that is no whole picture is named and passed over.
"""

import argparse
from typing import Any

from ..files.numbers import share
from .detector_options import ConfigOptions

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('paths', nargs='+', metavar='PATH',
                        help='picture files, and folders of pictures; without --model, a detector comes first: a '
                             'configuration (a file, or the name of one in mmdet_configs) and its weights, or '
                             'hf-hub:user/repo, local-dir:folder, or an .onnx file')
    parser.add_argument('--model', metavar='NAME',
                        help='folder of a run or of a shared detector, hf-hub:user/repo, local-dir:folder, or an '
                             '.onnx file of timm-se export, which needs no MMDetection')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE',
                        help='change values of the configuration, as in model.test_cfg.rcnn.score_thr=0.2')
    parser.add_argument('--output', default='work_dirs/detections', help='folder to write into (default: %(default)s)')
    parser.add_argument('--score', type=share, default=0.3,
                        help='lowest score of a box that is kept (default: %(default)s)')
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0 (default: %(default)s)')


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Detect, and return the content of ``detections.json``.

    Raises:
        ValueError: there is no picture among the arguments, or an ONNX file is given with options of others.
        UnwritableFileError: nothing can be written into the folder.
    """
    from ..boxes import detect, open_onnx_detector, pictures_to_detect_in
    from ..files.counting import counted
    from ..files.hub_files import SAVED_AT
    from ..files.writing import check_folder

    check_folder(args.output)
    place, checkpoint, pictures = args.model, None, args.paths
    if place is None:
        place, *pictures = pictures
        is_whole = place.startswith(SAVED_AT) or place.endswith('.onnx')
        if len(pictures) < (1 if is_whole else 2):
            parts = 'a detector' if is_whole else 'a configuration, a checkpoint'
            raise ValueError(f'{" ".join(args.paths)}: without --model, {parts} and at least one picture are needed')
        if not is_whole:
            checkpoint, *pictures = pictures
    targets = pictures_to_detect_in(pictures, args.output)
    if place.endswith('.onnx'):
        if args.cfg_options or args.device != 'cpu':
            raise ValueError('--cfg-options and --device are not possible with an ONNX file, which has no '
                             'configuration and is computed on the CPU here')
        detector = open_onnx_detector(place)
    else:
        from ..detection.hub import open_detector
        from ..detection.inference import detector_of
        detector = detector_of(open_detector(place, checkpoint, args.cfg_options, args.device), checkpoint or place)
    results = detect(detector, targets, args.output, args.score)
    for result in results:
        print(f"{result['file']}: {counted(len(result['detections']), 'box', 'boxes')}")
    print(f'written to {args.output}')
    return results
