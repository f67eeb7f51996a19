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
    parser.add_argument('config', help='a file, or the name of one in mmdet_configs')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints; work_dirs/<config> by default')
    parser.add_argument('--resume', nargs='?', const=True, default=False, metavar='CHECKPOINT',
                        help='go on from a checkpoint, or from the last whole one in the work folder')
    parser.add_argument('--record', metavar='CSV', help='when the run ends, add its row there, and its curve beside it')
    parser.add_argument('--seed', type=int, help='of all random numbers; the configuration\'s if not given')
    parser.add_argument('--amp', action='store_true', help='mixed precision (CUDA)')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='change the configuration, as in model.backbone.attn=sk')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # MMEngine reads it there
    config = read_config(args.config, args.cfg_options, args.work_dir)
    if args.seed is not None:
        config.randomness = {**config.get('randomness', {}), 'seed': args.seed}
    runner = train_detector(config, args.resume, args.amp, args.auto_scale_lr, args.launcher)
    if args.record and is_main_process():
        record_run(runner, args.record)


if __name__ == '__main__':
    main()
