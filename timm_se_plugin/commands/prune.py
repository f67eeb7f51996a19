"""Remove the channels that a trained network's gates use least, fine-tune, and tabulate accuracy against MACs.

timm-se prune work_dirs/RUN/last.pth.tar --shares 0.25 0.5 --epochs 3
"""

import argparse
from pathlib import Path
from typing import Any

__all__ = ['add_arguments', 'run']

_CRITERIA = ('mean', 'deviation', 'random')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('checkpoint', help='checkpoint of timm-se train, whose options of data and model are used')
    parser.add_argument('--shares', type=float, nargs='+', default=[0.25, 0.5], metavar='X',
                        help='shares of the gated channels to remove, between 0 and 1 (default: 0.25 0.5)')
    parser.add_argument('--criteria', nargs='+', choices=_CRITERIA, default=list(_CRITERIA),
                        help='criteria that choose the channels: the smallest mean gate, the smallest deviation of the '
                             'gate, or chance (default: all three)')
    parser.add_argument('--epochs', type=int, default=3, metavar='N',
                        help='epochs of fine-tuning after the pruning (default: %(default)s)')
    parser.add_argument('--lr', type=float, default=0.01, metavar='X',
                        help='learning rate at the start of the fine-tuning (default: %(default)s)')
    parser.add_argument('--data-dir', metavar='DIR', help="folder of the data; the training's if not given")
    parser.add_argument('--device', metavar='NAME',
                        help='device, such as cpu or cuda:1; if not given, cuda where there is one, else cpu')
    parser.add_argument('--results', type=Path, default=Path('work_dirs/pruning.csv'), metavar='CSV',
                        help='table of the results (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path('work_dirs/pruned'), metavar='DIR',
                        help="folder for the pruned networks, each a folder that timm.create_model('local-dir:...') "
                             'loads (default: %(default)s)')


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Prune and fine-tune, and return the rows of the table."""
    from ..analysis.pruning_study import pruning_study
    changes = {key: value for key, value in (('data_dir', args.data_dir), ('device', args.device)) if value}
    return pruning_study(
        args.checkpoint, args.shares, args.criteria, args.epochs, args.lr, args.results, args.output, **changes)
