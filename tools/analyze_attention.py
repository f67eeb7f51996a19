"""Analyse the gates of a trained network: a table, the papers' figures and a report in one HTML file.

python tools/analyze_attention.py --checkpoint work_dirs/run/last.pth.tar --output work_dirs/analysis
python tools/analyze_attention.py --model seresnet50 --pretrained --data-dir imagenet --output work_dirs/analysis
"""

import logging

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.analysis import analyze, parse_analysis


def main() -> None:
    """Read the options and analyse."""
    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.WARNING)
    analyze(parse_analysis())


if __name__ == '__main__':
    main()
