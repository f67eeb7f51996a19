"""Evaluate a checkpoint, or any model of timm or of the plugin.

python tools/evaluate_classifier.py --checkpoint work_dirs/.../model_best.pth.tar --output work_dirs/evaluation
python tools/evaluate_classifier.py --model seresnet50.a2_in1k --pretrained --data-dir imagenet --img-size 320 \
    --crop-pct 320/352 --real-labels
"""

import logging

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.training import evaluate_classifier, parse_evaluation


def main() -> None:
    """Read the options and evaluate."""
    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING)
    evaluate_classifier(parse_evaluation())


if __name__ == '__main__':
    main()
