"""Draw pictures of a test set, with the annotated boxes on the left and the detected ones on the right.

timm-se detect compare work_dirs/RUN
timm-se detect compare faster-rcnn_se-r18_fpn_bccd work_dirs/RUN/epoch_8.pth
"""

import argparse

from ..files.numbers import count, share
from .detector_options import add_checkpoint, add_config, given_checkpoint

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config(parser)
    add_checkpoint(parser)
    parser.add_argument('--output', default='work_dirs/comparison.png',
                        help='picture file to write (default: %(default)s)')
    parser.add_argument('--count', type=count, default=6,
                        help='number of pictures, if the test set has so many (default: %(default)s)')
    parser.add_argument('--score', type=share, default=0.5,
                        help='lowest score of a detection that is drawn (default: %(default)s)')
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0 (default: %(default)s)')


def run(args: argparse.Namespace) -> dict[str, str]:
    """Draw, and return where the picture is."""
    from ..files.writing import check_file

    check_file(args.output)
    from ..detection.hub import given_detector
    from ..detection.inference import compare

    compare(*given_detector(args.config, given_checkpoint(args), args.cfg_options), args.output, args.count,
            args.score, args.device)
    print(f'written to {args.output}')
    return {'output': args.output}
