"""Train a detector of MMDetection.

timm-se detect train --data my/pictures --model faster-rcnn_se-r50_fpn_1x_coco
timm-se detect train faster-rcnn_se-r18_fpn_bccd
torchrun --nproc-per-node 8 -m timm_se_plugin detect train faster-rcnn_se-r50_fpn_1x_coco
"""

import argparse
import os
import sys

from .detector_options import add_config, add_launcher, add_picture_check, launcher, options_text

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config(parser, nargs='?')
    parser.add_argument('--data', metavar='FOLDER',
                        help='train on the pictures and boxes of a folder, in the format of COCO (JSON), Pascal VOC '
                             '(XML) or YOLO (data.yaml and text); --model is fitted to these data')
    parser.add_argument('--model', metavar='CONFIG', help='configuration whose detector is trained on --data')
    parser.add_argument('--val-share', type=float, metavar='X',
                        help='share of the train pictures of --data to validate on, where the folder has no val split; '
                             'few pictures change sides when others are added or removed')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; by default work_dirs/<config>, with '
                                           '--data ending in the name of its folder')
    parser.add_argument('--resume', nargs='?', const=True, default=False, metavar='CHECKPOINT',
                        help='continue from a checkpoint; without a value, or with auto, from the last complete one in '
                             '--work-dir, if there is one')
    parser.add_argument('--record', metavar='CSV',
                        help='table to add the finished run to, with its options; its curve goes to '
                             '<name>-curves.csv beside it')
    parser.add_argument('--seed', type=int, help="seed of all random numbers; by default the configuration's")
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (CUDA)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    add_picture_check(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> dict[str, str]:
    """Train, and return where the results are.

    Raises:
        FileExistsError: the work folder has a training that is not to be continued.
        ValueError: neither a configuration nor --data and --model are given, or options that do not go together.
    """
    from mmengine.dist import is_main_process

    from ..detection.checkpoint_hook import check_work_dir
    from ..detection.configs import read_config
    from ..detection.records import record_run
    from ..detection.running import train_detector
    from ..files.tables import check_table
    from ..measuring.provenance import commit

    began = ''
    if args.record:
        check_table(args.record)
        began = commit()  # the files may change while the detector is trained
    if args.data and args.model and not args.config:
        from ..detection.own_data import config_for_folder
        config = config_for_folder(
            args.model, args.data, args.work_dir, args.val_share, args.cfg_options, args.resume, launcher(args))
    elif args.config and not (args.data or args.model or args.val_share):
        config = read_config(args.config, args.cfg_options, args.work_dir)
        check_work_dir(config, args.resume)
    else:
        given = [option for option, value in (
            (args.config, args.config), ('--data', args.data), ('--model', args.model),
            ('--val-share', args.val_share)) if value]
        raise ValueError(f'detect train was given {" and ".join(given) or "nothing"}; it takes either a configuration '
                         'alone, or --data FOLDER and --model CONFIG, with or without --val-share, such as '
                         '--model faster-rcnn_se-r50_fpn_1x_coco')
    if args.seed is not None:
        config.randomness = {**config.get('randomness', {}), 'seed': args.seed}
    try:
        runner = train_detector(config, args.resume, args.amp, args.auto_scale_lr, launcher(args),
                                check_pictures=not args.no_picture_check)
    except KeyboardInterrupt:
        if is_main_process():
            print(f'--resume continues from the last checkpoint in {config.work_dir}', file=sys.stderr)
        raise
    if is_main_process():
        print(f'written to {config.work_dir}')
    if args.record and is_main_process():
        names = ('amp', 'auto_scale_lr', 'data', 'val_share')
        own = {name: getattr(args, name) for name in names if getattr(args, name)}
        if args.data:
            own['data'] = os.path.normpath(args.data)  # cells, ./cells and cells/ are one
        record_run(runner, args.record, options_text({**args.cfg_options, **own}), began)
    return {'work_dir': config.work_dir}
