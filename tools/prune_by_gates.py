"""Remove the channels that a trained network's gates use least, fine-tune, and tabulate accuracy against MACs.

python tools/prune_by_gates.py work_dirs/run/last.pth.tar --shares 0.25 0.5 --criteria mean random --epochs 3
"""

import argparse
import logging
from pathlib import Path

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.analysis.pruning import CRITERIA
from timm_se_plugin.analysis.pruning_study import pruning_study


def main() -> None:
    """Read the options and run."""
    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='of train_classifier, whose options hold')
    parser.add_argument('--shares', type=float, nargs='+', default=[0.25, 0.5], help='of the gated channels')
    parser.add_argument('--criteria', nargs='+', choices=CRITERIA, default=['mean', 'random'])
    parser.add_argument('--epochs', type=int, default=3, help='of fine-tuning')
    parser.add_argument('--lr', type=float, default=0.01)
    parser.add_argument('--data-dir', help='if it is no longer where the training found it')
    parser.add_argument('--device')
    parser.add_argument('--results', type=Path, default=Path('work_dirs/pruning.csv'))
    args = parser.parse_args()
    changes = {key: value for key, value in (('data_dir', args.data_dir), ('device', args.device)) if value}
    pruning_study(args.checkpoint, args.shares, args.criteria, args.epochs, args.lr, args.results, **changes)


if __name__ == '__main__':
    main()
