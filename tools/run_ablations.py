r"""Train, evaluate and tabulate an ablation of the papers. The same command continues an interrupted ablation.

python tools/run_ablations.py integration --config cifar10-short --dataset torch/cifar10 --data-dir data \
    --model se_resnet20_cifar_plugin --seeds 0 1
python tools/run_ablations.py ratio --config imagenet-se --data-dir imagenet --devices cuda:0 cuda:1

Options that are not listed below are passed to the training; tools/train_classifier.py --help lists them.
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
    parser.add_argument('study', choices=list(STUDIES), help='ablation to run')
    parser.add_argument('--config', required=True, metavar='RECIPE',
                        help='YAML file with options of the training, or the name of a packaged recipe')
    parser.add_argument('--model', metavar='NAME',
                        help="network of the plugin; the paper's if not given: SE-ResNet-50, for branches SKNet-50")
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1], metavar='N',
                        help='seeds of the runs of each row (default: 0 1)')
    parser.add_argument('--devices', nargs='+', default=['cpu'], metavar='NAME',
                        help='devices, each of which trains one run at a time (default: cpu)')
    parser.add_argument('--output', type=Path, default=Path('work_dirs/ablations'), metavar='DIR',
                        help='folder for the runs (default: %(default)s)')
    parser.add_argument('--results', type=Path, default=Path('work_dirs/ablations.csv'), metavar='CSV',
                        help='table of the results; <table>-<study>.png beside it shows them (default: %(default)s)')
    args, training = parser.parse_known_args()
    rows = run_study(
        args.study, args.config, args.model, args.seeds, args.output, args.results, args.devices, training)
    draw_ablation(rows, args.results.with_name(f'{args.results.stem}-{args.study}.png'))


if __name__ == '__main__':
    main()
