"""Add SE to a trained ResNet-18 without changing a prediction, train both on, and report accuracy, cost and gates.

The images are scikit-learn's 1,797 handwritten digits. The demo takes about two minutes on two cores, and ends with a
report to open in a browser.
"""

import argparse
from pathlib import Path

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('--output', type=Path, default=Path('work_dirs/demo'),
                        help='folder for everything written (default: %(default)s)')
    parser.add_argument('--epochs', type=int, default=3,
                        help='number of epochs before the network gains attention, and again afterwards '
                             '(default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=64, help='images in a batch (default: %(default)s)')
    parser.add_argument('--size', type=int, default=32,
                        help='height and width of the images in pixels (default: %(default)s)')
    parser.add_argument('--seeds', type=int, default=3, help='number of seeds, counted from 0 (default: %(default)s)')


def run(args: argparse.Namespace) -> dict[str, str]:
    """Run the demo, and return where everything is."""
    from ..analysis.demo import demo
    demo(args.output, args.epochs, args.batch_size, args.size, args.seeds)
    return {'output': str(args.output), 'report': str(args.output / 'report.html')}
