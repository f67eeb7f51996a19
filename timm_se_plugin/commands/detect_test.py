"""Test a detector on the test set of its configuration.

timm-se detect test work_dirs/RUN
timm-se detect test faster-rcnn_se-r18_fpn_bccd work_dirs/RUN/epoch_8.pth
"""

import argparse

from .detector_options import add_checkpoint, add_config, add_launcher, add_picture_check, given_checkpoint, launcher

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config(parser, example='test_dataloader.dataset.ann_file=instances_val.json')
    add_checkpoint(parser)
    parser.add_argument('--work-dir', help='folder for logs and metrics; by default work_dirs/<config>, or the folder '
                                           'of the training that is given')
    parser.add_argument('--out', help='file to write all predictions into (.pkl)')
    add_picture_check(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> dict[str, float]:
    """Test, and return the metrics."""
    from ..detection.hub import given_detector
    from ..detection.running import test_detector

    config, checkpoint = given_detector(args.config, given_checkpoint(args), args.cfg_options, args.work_dir)
    return test_detector(config, checkpoint, args.out, launcher(args), check_pictures=not args.no_picture_check)
