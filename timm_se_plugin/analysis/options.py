"""The options of an analysis of gates."""

import argparse

from ..training.options import evaluation_parser

__all__ = ['analysis_parser']


def analysis_parser(root: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """A parser for the options of an evaluation and of an analysis; the options are added to `root` if it is given."""
    parser = evaluation_parser(root, real_labels=False)
    if root is None:
        parser.prog, parser.description = 'timm-se analyze', (
            "Analyse the gates of a classifier, of timm or of the plugin: write a table, the papers' figures and a "
            'report.')
    shared = {action.dest: action for action in parser._actions}
    shared['output'].help = 'folder for gates.csv, the figures and report.html'
    shared['task'].help = argparse.SUPPRESS  # the analysis compares classes, and refuses --task multilabel
    add = parser.add_argument_group('analysis').add_argument
    add('--classes', nargs='+', metavar='NAME', help='classes to draw (default: the first four that have images)')
    add('--table', choices=('csv', 'parquet'), default='csv',
        help='format of the table of statistics; parquet needs pyarrow (default: %(default)s)')
    add('--record', metavar='CSV',
        help='table that gets a row for each attention, named by the run of --checkpoint: the mean of its gates, their '
             'deviation between images and between channels, dependence on the class and saturation; what enlarged '
             'images change in Selective Kernels goes into <table>-scale.csv beside it')
    add('--pictures', type=int, default=12, metavar='N',
        help='number of the most unusual images in the report (default: %(default)s)')
    return parser
