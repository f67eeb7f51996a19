"""Show where a network has attention, and the attention's share of parameters and MACs, as a tree and as a picture.

timm-se sites se_inception_v3_plugin --output sites.png
timm-se sites vgg16_bn_plugin --model-kwargs attn=cbam attn_stages=3
"""

import argparse
from typing import Any

from .network_options import add_network, network

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_network(parser)
    parser.add_argument('--output', help='PNG, SVG or PDF file to draw into')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print and draw, and return the tree."""
    from dataclasses import asdict

    from ..measuring.site_tree import draw_sites, site_tree
    tree = site_tree(*network(args))
    print(tree)
    if args.output:
        draw_sites(tree, args.output, args.model)
    return asdict(tree)
