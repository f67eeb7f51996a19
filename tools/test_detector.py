"""Test a detector on the test set of its configuration.

python tools/test_detector.py faster-rcnn_se-r18_fpn_bccd work_dirs/faster-rcnn_se-r18_fpn_bccd/epoch_8.pth
"""

import argparse
import os

from mmengine.config import DictAction

from timm_se_plugin.detection.configs import read_config
from timm_se_plugin.detection.running import test_detector


def main() -> None:
    """Read the arguments and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='configuration: a file, or the name of one in mmdet_configs')
    parser.add_argument('checkpoint', help='weights of the detector')
    parser.add_argument('--work-dir', help='folder for logs and metrics; by default work_dirs/<config>')
    parser.add_argument('--out', help='file to write all predictions into (.pkl)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='change values of the configuration, as in '
                             'test_dataloader.dataset.ann_file=instances_val.json')
    parser.add_argument('--no-picture-check', action='store_true',
                        help='do not compare the picture files with the annotations before the first step; the check '
                             'reads the header of each file')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none',
                        help='what started the processes of a distributed test')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # which MMEngine reads
    test_detector(read_config(args.config, args.cfg_options, args.work_dir), args.checkpoint, args.out, args.launcher,
                  check_pictures=not args.no_picture_check)


if __name__ == '__main__':
    main()
