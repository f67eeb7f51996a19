r"""Evaluate a classifier of timm or of the plugin, or a checkpoint of timm-se train.

timm-se evaluate --checkpoint work_dirs/RUN/model_best.pth.tar --output work_dirs/evaluation
timm-se evaluate --model seresnet50.a2_in1k --pretrained --data-dir imagenet --img-size 320 --crop-pct 320/352 \
    --real-labels
"""

import argparse
from typing import Any

from ..training.options import evaluation_parser

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; :func:`~timm_se_plugin.training.parse_evaluation` reads those of the checkpoint too."""
    parser.usage = '%(prog)s [OPTIONS]'  # the options fill more than a screen
    evaluation_parser(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, and return the metrics."""
    from ..training import evaluate_classifier, parse_evaluation
    return evaluate_classifier(parse_evaluation(args.words))
