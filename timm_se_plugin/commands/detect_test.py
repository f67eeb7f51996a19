"""Test a detector on the test set of its configuration.

timm-se detect test faster-rcnn_se-r18_fpn_bccd work_dirs/faster-rcnn_se-r18_fpn_bccd/epoch_8.pth
"""

import argparse

from .detector_options import add_config, add_launcher, add_picture_check, launcher

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config(parser, example='test_dataloader.dataset.ann_file=instances_val.json')
    parser.add_argument('checkpoint', help='weights of the detector')
    parser.add_argument('--work-dir', help='folder for logs and metrics; by default work_dirs/<config>')
    parser.add_argument('--out', help='file to write all predictions into (.pkl)')
    add_picture_check(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> dict[str, float]:
    """Test, and return the metrics."""
    from ..detection.configs import read_config
    from ..detection.running import test_detector

    return test_detector(read_config(args.config, args.cfg_options, args.work_dir), args.checkpoint, args.out,
                         launcher(args), check_pictures=not args.no_picture_check)
