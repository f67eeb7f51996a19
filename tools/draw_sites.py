"""Show where a network has attention, and the attention's share of parameters and MACs, as a tree and as a picture.

python tools/draw_sites.py se_inception_v3_plugin --output sites.png
python tools/draw_sites.py vgg16_bn_plugin --model-kwargs attn=cbam attn_stages=3
"""

import argparse

import timm
from timm.utils import ParseKwargs

import timm_se_plugin  # noqa: F401  (registers the models)
from timm_se_plugin.measuring.site_tree import draw_sites, site_tree


def main() -> None:
    """Read the arguments, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help="timm's or the plugin's name of the network")
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
                        help='arguments of the network, such as attn=se')
    parser.add_argument('--input-size', type=int, nargs=3, metavar=('C', 'H', 'W'),
                        help="size of the image; by default the network's own")
    parser.add_argument('--output', help='PNG, SVG or PDF file to draw into')
    args = parser.parse_args()
    tree = site_tree(
        timm.create_model(args.model, device='meta', **args.model_kwargs),
        tuple(args.input_size) if args.input_size else None)
    print(tree)
    if args.output:
        draw_sites(tree, args.output, args.model)


if __name__ == '__main__':
    main()
