"""Convert weights of timm, torchvision, Cadene, Caffe's SENet, mmpretrain or MMDetection; or a model back to timm's.

python tools/convert_weights.py se_resnet50-ce0d4300.pth legacy_seresnet50_plugin converted
python tools/convert_weights.py resnet50.pth resnet50_plugin converted --model-kwargs attn=se attn_init=identity
python tools/convert_weights.py local-dir:converted legacy_seresnet50 timms

The folder is what timm saves: timm.create_model('local-dir:converted', pretrained=True) loads it.
"""

import argparse
import importlib.util

from timm.utils import ParseKwargs

if importlib.util.find_spec('mmdet'):  # with it, what MMEngine keeps beside the weights is known to torch.load
    import timm_se_plugin.detection  # noqa: F401
from timm_se_plugin.weights.convert import convert_file


def main() -> None:
    """Read the arguments and convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', help='a file, or local-dir:folder or hf-hub:user/repo for a saved model')
    parser.add_argument('model', help="the plugin's name, or timm's to convert a saved model back")
    parser.add_argument('folder', help='for the result; conversion.json in it says what became of every key')
    parser.add_argument('--source', help="timm's name of the network that the file is of, to compare with the model")
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    args = parser.parse_args()
    print(convert_file(args.weights, args.model, args.folder, args.source, **args.model_kwargs))


if __name__ == '__main__':
    main()
