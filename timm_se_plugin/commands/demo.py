"""Train SE-ResNet-18 and the plain ResNet-18 on real digits, compare them, save the first and load it back.

The images are scikit-learn's 1,797 handwritten digits. It takes a few minutes on two cores.
"""

import argparse
from pathlib import Path

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('--output', type=Path, default=Path('work_dirs/demo'),
                        help='folder for everything written (default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=6, help='number of epochs (default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=64, help='images in a batch (default: %(default)s)')
    parser.add_argument('--size', type=int, default=64,
                        help='images are resized to this many pixels (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all random numbers (default: %(default)s)')


def run(args: argparse.Namespace) -> dict[str, str]:
    """Run the demo, and return where everything is."""
    from ..training.demo import demo
    demo(args.output, args.epochs, args.batch_size, args.size, args.seed)
    return {'output': str(args.output)}
