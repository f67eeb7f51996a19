"""Train a Faster R-CNN with an SE-ResNet-18 backbone on scenes of real digits, and draw what it finds.

One folder gets the scenes with COCO annotations, the checkpoints, and a picture with the detected boxes. The demo needs
the extras mmdet and train, which has scikit-learn's digits.
"""

import argparse
from pathlib import Path

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('--output', type=Path, default=Path('work_dirs/demo'),
                        help='folder to write into (default: %(default)s)')
    parser.add_argument('--scenes', type=int, default=400,
                        help='number of scenes to train on; as many, at most 60, are for validation '
                             '(default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=5, help='number of epochs (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0,
                        help='seed of the scenes and of the training (default: %(default)s)')


def run(args: argparse.Namespace) -> dict[str, str]:
    """Run the demo, and return where everything is."""
    from ..detection.demo import demo
    demo(args.output, args.scenes, args.epochs, args.seed)
    return {'output': str(args.output)}
