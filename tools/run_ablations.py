"""Train, evaluate and tabulate an ablation of the papers; run again, it continues.

python tools/run_ablations.py integration --config cifar10-short --dataset torch/cifar10 --data-dir data \
    --model se_resnet20_cifar_plugin --seeds 0 1
python tools/run_ablations.py ratio --config imagenet-se --data-dir imagenet --devices cuda:0 cuda:1

Options that are not listed here go to the training (tools/train_classifier.py --help).
"""

import argparse
import logging
from pathlib import Path

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.analysis.ablations import draw_ablation, run_study
from timm_se_plugin.analysis.studies import STUDIES


def main() -> None:
    """Read the options and run."""
    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.INFO)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument('study', choices=list(STUDIES))
    parser.add_argument('--config', required=True, metavar='RECIPE')
    parser.add_argument('--model', help="the paper's if not given: SE-ResNet-50, for branches SKNet-50")
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--devices', nargs='+', default=['cpu'], help='as many rows are trained at once')
    parser.add_argument('--output', type=Path, default=Path('work_dirs/ablations'), help='folder for the runs')
    parser.add_argument('--results', type=Path, default=Path('work_dirs/ablations.csv'),
                        help='table; a plot goes beside (%(default)s)')
    args, training = parser.parse_known_args()
    rows = run_study(
        args.study, args.config, args.model, args.seeds, args.output, args.results, args.devices, training)
    draw_ablation(rows, args.results.with_name(f'{args.results.stem}-{args.study}.png'))


if __name__ == '__main__':
    main()
