"""Convert weights that circulate into a model of the plugin, or a saved model back into timm's.

The names of timm, torchvision, Cadene, Caffe's SENet, mmpretrain, MMDetection and the public CIFAR repositories are
known; --rename is for others.

python tools/convert_weights.py se_resnet50-ce0d4300.pth legacy_seresnet50_plugin converted
python tools/convert_weights.py resnet50.pth resnet50_plugin converted --model-kwargs attn=se attn_init=identity
python tools/convert_weights.py resnet20-12fca82f.th resnet20_cifar_plugin converted
python tools/convert_weights.py local-dir:converted legacy_seresnet50 timms

The result has timm's format: timm.create_model('local-dir:converted', pretrained=True) loads it.
"""

import argparse
import importlib.util

from timm.utils import ParseKwargs

if importlib.util.find_spec('mmdet'):  # lets torch.load read what MMEngine saves beside the weights
    import timm_se_plugin.detection  # noqa: F401
from timm_se_plugin.weights.convert import PADDINGS, convert_file


def main() -> None:
    """Read the arguments and convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', help='a file; or a saved model, as local-dir:folder or hf-hub:user/repo')
    parser.add_argument('model', help="the plugin's name of the network; or timm's name, to convert a saved model back")
    parser.add_argument('folder', help='folder to write into; conversion.json in it says what became of every key')
    parser.add_argument('--source', help="timm's name of the network that a file's weights belong to; the "
                                         'new model then has to compute the same function')
    parser.add_argument('--rename', nargs='*', default={}, action=ParseKwargs, metavar='OLD=NEW',
                        help='other names for parts of keys, such as linear=fc')
    parser.add_argument('--padding', choices=PADDINGS,
                        help='where shortcuts without parameters put the zeros for new channels in the network that '
                             'the weights belong to: all behind, or half of them before; by default both for the names '
                             'of the public CIFAR repositories and behind for others')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
                        help='arguments of the new model, such as attn=se')
    args = parser.parse_args()
    print(convert_file(args.weights, args.model, args.folder, args.source, args.rename, args.padding,
                       **args.model_kwargs))


if __name__ == '__main__':
    main()
