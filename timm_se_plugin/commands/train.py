"""Train a classifier of timm or of the plugin.

timm-se train --config cifar10-short --dataset torch/cifar10 --dataset-download --data-dir data
torchrun --nproc-per-node 8 -m timm_se_plugin train --config imagenet-se --data-dir imagenet
"""

import argparse
from typing import Any

from ..training.options import training_parser

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; :func:`~timm_se_plugin.training.parse_options` reads those of the recipe too."""
    parser.usage = '%(prog)s [OPTIONS]'  # the options fill more than a screen
    training_parser(parser)


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train, and return the run's row of results."""
    from ..training import parse_options, train_classifier
    return train_classifier(parse_options(args.words))
