"""Train a classifier of timm or of the plugin.

timm-se train --config cifar10-short --dataset torch/cifar10 --dataset-download --data-dir data
torchrun --nproc-per-node 8 -m timm_se_plugin train --config imagenet-se --data-dir imagenet
"""

import argparse
import sys
from typing import Any

from ..training.options import training_parser

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; :func:`~timm_se_plugin.training.parse_options` reads those of the recipe too."""
    parser.usage = '%(prog)s [OPTIONS]'  # the options fill more than a screen
    training_parser(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and return the run's row of results; a training that SIGTERM has ended ends the command with 143."""
    from ..training import parse_options, train_classifier
    row = train_classifier(parse_options(args.words))
    if row is None:
        sys.exit(143)  # what a shell says of a program that SIGTERM has ended
    return row
