r"""Train, evaluate and tabulate an ablation of the papers; the same command continues an interrupted ablation.

timm-se ablate integration --config cifar10-short --dataset torch/cifar10 --data-dir data \
    --model se_resnet20_cifar_plugin --seeds 0 1
timm-se ablate ratio --config imagenet-se --data-dir imagenet --devices cuda:0 cuda:1

Options that are not listed below are passed to the training; timm-se train --help lists them.
"""

import argparse
from pathlib import Path
from typing import Any

from ..analysis.studies import STUDIES
from ..files.key_values import KeyValues

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the study; other options are passed to the training."""
    parser.add_argument('study', choices=list(STUDIES), help='ablation to run')
    parser.add_argument('--config', required=True, metavar='RECIPE',
                        help='YAML file with options of the training, or the name of a packaged recipe')
    parser.add_argument('--model', metavar='NAME',
                        help="network of the plugin; the paper's if not given: SE-ResNet-50, for branches SKNet-50")
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                        help='arguments of the network that all rows share, such as zero_init_last=False')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1], metavar='N',
                        help='seeds of the runs of each row (default: 0 1)')
    parser.add_argument('--devices', nargs='+', default=['cpu'], metavar='NAME',
                        help='devices, each of which trains one run at a time (default: cpu)')
    parser.add_argument('--output', type=Path, default=Path('work_dirs/ablations'), metavar='DIR',
                        help='folder for the runs (default: %(default)s)')
    parser.add_argument('--results', type=Path, default=Path('work_dirs/ablations.csv'), metavar='CSV',
                        help='table of the results; <table>-<study>.png beside it shows them (default: %(default)s)')
    parser.set_defaults(takes_others=True)


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the study, and return the rows of its table."""
    from ..analysis.ablations import draw_ablation, run_study, study_of
    from ..files.tables import read_table
    rows = run_study(
        args.study, args.config, args.model, args.seeds, args.output, args.results, args.devices, args.others,
        args.model_kwargs)
    # The table may have other seeds of the same study, from other calls.
    shown = [row for row in read_table(args.results) if study_of(row) == study_of(rows[0])]
    draw_ablation(shown, args.results.with_name(f'{args.results.stem}-{args.study}.png'))
    return rows
