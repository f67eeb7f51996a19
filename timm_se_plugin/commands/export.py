"""Export a classifier to an ONNX file, checked against PyTorch on pictures by ONNX Runtime before it is written.

timm-se export work_dirs/run digits.onnx --pictures pictures/
timm-se predict pictures/ --model digits.onnx

The file takes any number of pictures at once where the network allows. Its metadata say how pictures are prepared and
what the classes are called.
"""

import argparse
from typing import Any

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('model', help="folder of a run or of a saved model, hf-hub:user/repo, local-dir:folder, or "
                                      "timm's name of a network with published weights")
    parser.add_argument('file', help='.onnx file to write')
    parser.add_argument('--pictures', nargs='+', required=True, metavar='PICTURE',
                        help='picture files and folders, the first 32 pictures of which the file is checked on')


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export, and return what was written and how it was checked.

    Raises:
        ValueError: the name of the file does not end in .onnx.
    """
    from dataclasses import asdict

    from ..training.classifiers import open_classifier
    from ..training.onnx_file import export_onnx

    if not args.file.endswith('.onnx'):
        raise ValueError(f'{args.file} does not end in .onnx')
    done = export_onnx(open_classifier(args.model), args.file, args.pictures)
    print(f'{done.file}: {done.bytes:,} bytes, for {"any number of pictures" if done.dynamic_batch else "one picture"} '
          f'at a time; on {done.pictures} pictures the probabilities of ONNX Runtime and PyTorch differ by at most '
          f'{done.largest_difference:.1g}')
    return asdict(done)
