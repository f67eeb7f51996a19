"""Train a detector.

timm-se detect train faster-rcnn_se-r18_fpn_bccd
torchrun --nproc-per-node 8 -m timm_se_plugin detect train faster-rcnn_se-r50_fpn_1x_coco
"""

import argparse

from .detector_options import add_config, add_launcher, add_picture_check, launcher

__all__ = ['add_arguments', 'run']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_config(parser)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; by default work_dirs/<config>')
    parser.add_argument('--resume', nargs='?', const=True, default=False, metavar='CHECKPOINT',
                        help='resume from a checkpoint, or from the last complete one in the work folder')
    parser.add_argument('--record', metavar='CSV',
                        help='table to add the finished run to; its curve goes to <name>-curves.csv beside it')
    parser.add_argument('--seed', type=int, help="seed of all random numbers; by default the configuration's")
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (CUDA)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    add_picture_check(parser)
    add_launcher(parser)


def run(args: argparse.Namespace) -> dict[str, str]:
    """Train, and return where the results are."""
    from mmengine.dist import is_main_process

    from ..detection.configs import read_config
    from ..detection.records import record_run
    from ..detection.running import train_detector

    config = read_config(args.config, args.cfg_options, args.work_dir)
    if args.seed is not None:
        config.randomness = {**config.get('randomness', {}), 'seed': args.seed}
    runner = train_detector(config, args.resume, args.amp, args.auto_scale_lr, launcher(args),
                            check_pictures=not args.no_picture_check)
    if args.record and is_main_process():
        record_run(runner, args.record)
    return {'work_dir': config.work_dir}
