"""Train a detector.

python tools/train_detector.py faster-rcnn_se-r18_fpn_bccd
torchrun --nproc-per-node 8 tools/train_detector.py faster-rcnn_se-r50_fpn_1x_coco --launcher pytorch
"""

import argparse
import os

from mmengine.config import DictAction
from mmengine.dist import is_main_process

from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.records import record_run
from timm_se_plugin.detection.running import train_detector


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='configuration: a file, or the name of one in mmdet_configs')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; by default work_dirs/<config>')
    parser.add_argument('--resume', nargs='?', const=True, default=False, metavar='CHECKPOINT',
                        help='resume from a checkpoint, or from the last complete one in the work folder')
    parser.add_argument('--record', metavar='CSV',
                        help='table to add the finished run to; its curve goes to <name>-curves.csv beside it')
    parser.add_argument('--seed', type=int, help="seed of all random numbers; by default the configuration's")
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (CUDA)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='change values of the configuration, as in model.backbone.attn=sk')
    parser.add_argument('--no-picture-check', action='store_true',
                        help='do not compare the picture files with the annotations before the first step; the check '
                             'reads the header of each file')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none',
                        help='what started the processes of a distributed training')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # which MMEngine reads
    config = read_config(args.config, args.cfg_options, args.work_dir)
    if args.seed is not None:
        config.randomness = {**config.get('randomness', {}), 'seed': args.seed}
    runner = train_detector(config, args.resume, args.amp, args.auto_scale_lr, args.launcher,
                            check_pictures=not args.no_picture_check)
    if args.record and is_main_process():
        record_run(runner, args.record)


if __name__ == '__main__':
    main()
