"""Analyse the gates of a trained network: a table, the papers' figures and a report in one HTML file.

timm-se analyze --checkpoint work_dirs/RUN/last.pth.tar --output work_dirs/analysis
timm-se analyze --model seresnet50 --pretrained --data-dir imagenet --output work_dirs/analysis
"""

import argparse

from ..analysis.options import analysis_parser

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; :func:`~timm_se_plugin.analysis.parse_analysis` reads those of the checkpoint too."""
    parser.usage = '%(prog)s [OPTIONS]'  # the options fill more than a screen
    analysis_parser(parser)


def run(args: argparse.Namespace) -> dict[str, str]:
    """Analyse, and return where the results are."""
    from ..analysis import analyze, parse_analysis
    options = parse_analysis(args.words)
    analyze(options)
    return {'output': options.output}
