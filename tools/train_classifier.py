"""Train a classifier.

python tools/train_classifier.py --config cifar10-short --dataset torch/cifar10 --dataset-download --data-dir data
torchrun --nproc-per-node 8 tools/train_classifier.py --config imagenet-se --data-dir imagenet
"""

import logging

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.training import parse_options, train_classifier


def main() -> None:
    """Read the options and train."""
    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING)
    train_classifier(parse_options())


if __name__ == '__main__':
    main()
