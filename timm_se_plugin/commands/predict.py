"""Predict the classes of pictures by a trained, saved, shared or published classifier.

timm-se predict pictures/ --model work_dirs/RUN
timm-se predict cat.jpg dog.webp --model hf-hub:user/repo --top 3 --json
timm-se predict pictures/ --model seresnet50.a2_in1k --output predictions.csv --sheet sheet.jpg

Folders are searched with the folders in them. A file that is no whole picture is named and passed over.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.numbers import count, share

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('pictures', nargs='+', metavar='PICTURE', help='picture files, and folders of pictures')
    parser.add_argument('--model', required=True, metavar='NAME',
                        help='folder of a run or of a saved model, hf-hub:user/repo, local-dir:folder, an .onnx file '
                             "of timm-se export, or timm's name of a network with published weights")
    parser.add_argument('--top', type=count, metavar='N',
                        help='number of classes at most; if not given, all labels for a model of --task multilabel, '
                             'and 5 classes for others')
    parser.add_argument('--threshold', type=share, metavar='X',
                        help='lowest score of a class that is given; if not given, 0.5 for a model of --task '
                             'multilabel, whose pictures have any number of labels, and 0 for others')
    parser.add_argument('--output', type=Path, metavar='FILE',
                        help='.csv or .json file to write; a .csv file has a row for each class of a picture, or a row '
                             'without a class where no score reaches the threshold')
    parser.add_argument('--sheet', type=Path, metavar='FILE',
                        help='picture file to draw the pictures with their best class into')
    parser.add_argument('--batch-size', type=count, default=32, metavar='N',
                        help='pictures that are computed at once (default: %(default)s)')
    parser.add_argument('--device', default='cpu', help='where to compute, such as cuda:0 (default: %(default)s)')


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Predict, print and write, and return the predictions.

    Raises:
        ValueError: an ending that is not written, a folder or a picture in the place of a file to write, or no file is
            a picture.
        UnwritableFileError: a file cannot be written where it is to lie.
    """
    import json

    from ..files.counting import counted
    from ..files.pictures import pictures_of
    from ..files.tables import write_table
    from ..files.writing import check_file, write_atomically
    from ..training.classifiers import open_classifier
    from ..training.prediction import check_sheet, draw_sheet, predict

    if args.output and args.output.suffix not in ('.csv', '.json'):
        raise ValueError(f'--output {args.output} ends in neither .csv nor .json')
    for path in filter(None, (args.output, args.sheet)):
        check_file(path)
    files = pictures_of(args.pictures)
    if args.sheet:
        check_sheet(args.sheet, files)
    predictions = []
    try:
        for found in predict(open_classifier(args.model, args.device), files, args.top, args.batch_size, args.device,
                             args.threshold):
            said = ', '.join(f'{label} {score:.3f}' for label, score in found.classes)
            print(f'{found.file}: {said or "nothing"}', flush=True)
            predictions.append(found)
    finally:  # an interruption or an error does not lose the predictions until then
        if args.output and predictions and args.output.suffix == '.json':
            content = json.dumps([found.to_dict() for found in predictions], indent=1, ensure_ascii=False)
            write_atomically(args.output, content.encode(errors='backslashreplace'))  # JSON's own escape of such bytes
        elif args.output and predictions:
            write_table(args.output, [{'file': found.file, 'rank': rank, 'label': label, 'score': probability}
                                      for found in predictions for rank, label, probability in _ranked(found.classes)])
        if args.sheet and predictions:
            draw_sheet(predictions, args.sheet)
    if not predictions:
        raise ValueError(f'of {counted(len(files), "file")}, none is a picture that can be read')
    for path in filter(None, (args.output, args.sheet)):
        print(f'written to {path}')
    return [found.to_dict() for found in predictions]


def _ranked(classes: Sequence[tuple[str, float]]) -> list[tuple[Any, Any, Any]]:
    return [(rank, *found) for rank, found in enumerate(classes, 1)] or [('', '', '')]
