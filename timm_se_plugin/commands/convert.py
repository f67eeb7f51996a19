"""Convert weights in a file into a saved model of the plugin, or a saved model back into timm's.

The file is a checkpoint of timm-se train, or has the keys of timm, torchvision, Cadene, Caffe's SENet, mmpretrain,
MMDetection or the public CIFAR repositories; --rename translates other keys.

timm-se convert se_resnet50-ce0d4300.pth legacy_seresnet50_plugin converted
timm-se convert resnet50.pth resnet50_plugin converted --model-kwargs attn=se attn_init=identity
timm-se convert resnet20-12fca82f.th resnet20_cifar_plugin converted --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
timm-se convert local-dir:converted legacy_seresnet50 timms

The result has timm's format: timm.create_model('local-dir:converted', pretrained=True) loads it.
"""

import argparse
import importlib.util
from typing import Any

from ..files.key_values import KeyValues

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('weights', help='a file; or a saved model, as local-dir:folder or hf-hub:user/repo')
    parser.add_argument('model', help="the plugin's name of the network; or timm's name, to convert a saved model back")
    parser.add_argument('folder', help='folder to write into; conversion.json there says what became of every key')
    parser.add_argument('--source', help="timm's name of the network that a file's weights belong to; the "
                                         'new model then has to compute the same function')
    parser.add_argument('--rename', nargs='*', default={}, action=KeyValues, metavar='OLD=NEW',
                        help='other names for parts of keys, such as linear=fc; without a new name, as in encoder=, '
                             'the part is taken off')
    parser.add_argument('--padding', choices=('both', 'behind'),
                        help='where shortcuts without parameters put the zeros for new channels in the network that '
                             'the weights belong to: all behind, or half of them before (both); by default both for '
                             'keys of the public CIFAR repositories and behind for others')
    for name, what in (('--mean', 'means'), ('--std', 'standard deviations')):
        parser.add_argument(name, type=float, nargs='+', metavar='X',
                            help=f'{what} of the channels that images are normalised by, with pixels from 0 to 1, for '
                                 "weights whose file does not say them; by default those of the new model's name")
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
                        help='arguments of the new model, such as attn=se')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Convert, and return what became of every key."""
    if importlib.util.find_spec('mmdet'):  # the import lets torch.load read what MMEngine saves beside weights
        from .. import detection  # noqa: F401
    from ..weights.convert import convert_file
    conversion = convert_file(
        args.weights, args.model, args.folder, args.source, args.rename, args.padding, args.mean, args.std,
        **args.model_kwargs)
    print(conversion)
    return conversion.to_dict()
