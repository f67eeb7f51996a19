"""Export a classifier or a detector to an ONNX file, checked against PyTorch on pictures before it is written.

timm-se export work_dirs/RUN digits.onnx --pictures pictures/
timm-se predict pictures/ --model digits.onnx
timm-se export work_dirs/RUN digits.onnx --pictures pictures/ --int8 training/

timm-se export faster-rcnn_se-r18_fpn_bccd cells.onnx --checkpoint work_dirs/RUN/epoch_8.pth --pictures pictures/
timm-se detect predict pictures/ --model cells.onnx

The file takes any number of pictures at once where the network allows. Its metadata say how pictures are prepared and
what the classes are called. A detector is a Faster R-CNN, Mask R-CNN or RetinaNet; its file takes pictures of any size,
and MMDetection is not needed to run the file.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from .detector_options import ConfigOptions

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('model', help="folder of a run or of a saved model, hf-hub:user/repo, local-dir:folder, "
                                      "timm's name of a network with published weights, or, with --checkpoint, the "
                                      'configuration of a detector')
    parser.add_argument('file', help='.onnx file to write')
    parser.add_argument('--pictures', nargs='+', required=True, metavar='PICTURE',
                        help='picture files and folders, of which the first 32, or 8 for a detector, are what the file '
                             'is checked on')
    parser.add_argument('--int8', nargs='+', metavar='PICTURE',
                        help='write a classifier in 8-bit integers too, as NAME-int8.onnx; 200 of these pictures, '
                             'which are to be like those of the training, give the ranges of the activations; all of '
                             '--pictures are then classified by both files, and tell the accuracy if their folders '
                             'have the names of the classes')
    parser.add_argument('--record', type=Path, metavar='FILE',
                        help='.csv file to add the accuracy of --int8 to')
    parser.add_argument('--checkpoint', metavar='FILE', help="a detector's weights")
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE',
                        help="change values of the detector's configuration, as in model.test_cfg.rcnn.score_thr=0.2")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Export, and return what was written and how it was checked.

    Raises:
        ValueError: the name of the file does not end in .onnx, or a file to write is a folder.
        UnwritableFileError: the file cannot be written where it is to lie.
    """
    from dataclasses import asdict

    from ..files.counting import counted
    from ..files.onnx_files import int8_file
    from ..files.tables import check_table
    from ..files.writing import check_file

    if not args.file.endswith('.onnx'):
        raise ValueError(f'{args.file} does not end in .onnx')
    check_file(args.file)
    if args.record and not args.int8:
        raise ValueError(f'--record {args.record} needs --int8, whose accuracy it records')
    if args.record:
        check_table(args.record)
    if args.checkpoint or _is_detector(args.model):
        if args.int8:
            raise ValueError(f'--int8 is for classifiers, and {args.model} is a detector')
        from ..detection.hub import open_detector
        from ..detection.onnx_export import export_detector

        detector = export_detector(open_detector(args.model, args.checkpoint, args.cfg_options), args.file,
                                   args.pictures)
        print(f'{detector.file}: {detector.bytes:,} bytes, for any number of pictures of one size at a time; PyTorch '
              f'finds {counted(detector.boxes, "box", "boxes")} in {counted(detector.pictures, "picture")}, and ONNX '
              f'Runtime the same within {detector.largest_score_difference:.1g} of the score and '
              f'{detector.largest_box_difference:.1g} pixels; found by one of the two only: '
              f'{counted(detector.unmatched, "box", "boxes")}')
        return asdict(detector)

    if args.cfg_options:
        raise ValueError(f'--cfg-options changes the configuration of a detector, and {args.model} is none; leave '
                         'the option out')
    from ..files.pictures import pictures_of
    from ..training.classifiers import open_classifier
    from ..training.onnx_file import export_onnx

    if args.int8:
        check_file(int8_file(args.file))
        pictures_of(args.int8)  # refuses a folder that is missing or empty before the export
    classifier = open_classifier(args.model)
    done = export_onnx(classifier, args.file, args.pictures)
    print(f'{done.file}: {done.bytes:,} bytes, for {"any number of pictures" if done.dynamic_batch else "one picture"} '
          f'at a time; on {counted(done.pictures, "picture")} the probabilities of ONNX Runtime and PyTorch differ by '
          f'at most {done.largest_difference:.1g}')
    if not args.int8:
        return asdict(done)

    from ..training.onnx_int8 import write_int8

    small = write_int8(args.file, args.int8, args.pictures)
    compared = 'each label' if classifier.is_multilabel else 'the best class'
    print(f'{small.file}: {small.bytes:,} bytes; on {counted(small.pictures, "picture")} {compared} is the same for '
          f'{small.same:.2%}' + ('' if small.top1_float is None else
                                 f', and right for {small.top1_float:.2%} in float32, {small.top1_int8:.2%} in int8'))
    if args.record:
        _record(args, done.bytes, small)
    return {**asdict(done), 'int8': asdict(small)}


def _record(args: argparse.Namespace, size: int, small: Any) -> None:
    import onnxruntime
    import torch

    from ..files.tables import replace_rows
    from ..measuring.provenance import provenance

    row = {'model': Path(args.model).name, 'pictures': small.pictures, 'calibration': small.calibration,
           'top1_float': small.top1_float, 'top1_int8': small.top1_int8, 'same': small.same, 'bytes_float': size,
           'bytes_int8': small.bytes, 'onnxruntime': onnxruntime.__version__, **provenance(torch.device('cpu'))}
    replace_rows(args.record, [row], ['model'])


def _is_detector(place: str) -> bool:
    """Whether a folder or a shared model is a detector."""
    from ..files.hub_files import CONFIG, FOLDER, SAVED_AT, read_config_json

    if os.path.isdir(place):
        if not os.path.isfile(os.path.join(place, CONFIG)):
            return os.path.isfile(os.path.join(place, 'last_checkpoint'))  # which MMEngine writes
        place = f'{FOLDER}{place}'
    return place.startswith(SAVED_AT) and read_config_json(place).get('task') == 'object-detection'
