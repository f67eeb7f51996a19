"""Where attention sits in a network, and its share of parameters and MACs: a tree on the screen, and a picture.

python tools/draw_sites.py se_inception_v3_plugin --output sites.png
python tools/draw_sites.py vgg16_bn_plugin --model-kwargs attn=cbam attn_stages=3
"""

import argparse

import timm
from timm.utils import ParseKwargs

import timm_se_plugin  # noqa: F401  # registers the models
from timm_se_plugin.measuring.site_tree import draw_sites, site_tree


def main() -> None:
    """Read the arguments, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='a name of timm or of the plugin')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'), help="the model's own if not given")
    parser.add_argument('--output', help='PNG, SVG or PDF file to draw')
    args = parser.parse_args()
    tree = site_tree(
        timm.create_model(args.model, device='meta', **args.model_kwargs),
        tuple(args.input_size) if args.input_size else None)
    print(tree)
    if args.output:
        draw_sites(tree, args.output, args.model)


if __name__ == '__main__':
    main()
