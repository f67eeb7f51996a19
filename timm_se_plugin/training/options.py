"""The options of training and of evaluation, with timm's names where timm has them."""

import argparse
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from timm.utils import ParseKwargs

__all__ = ['RUNTIME', 'evaluation_parser', 'training_parser']

_SCHEDULES = ('cosine', 'tanh', 'step', 'constant', 'multistep', 'plateau', 'poly', 'rsqrt', 'none')  # timm's
_INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')  # Pillow's, as timm names them

# Options that do not change what a run computes: a resumed run may change them.
RUNTIME = (
    'config', 'data_dir', 'dataset_download', 'validation_batch_size', 'workers', 'pin_mem', 'cache_images',
    'corrupt_images', 'device', 'dist_backend', 'output', 'experiment', 'resume', 'recovery_interval', 'log_interval',
    'tensorboard', 'results')


def _of_fraction(text: str) -> float:
    return float(Fraction(text))


def _number(kind: Callable[[str], Any], test: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except (ValueError, ZeroDivisionError):
            value = None
        if value is None or not test(value):
            raise argparse.ArgumentTypeError(f'{text!r} is not allowed; allowed: {what}')
        return value
    return convert


_count = _number(int, lambda n: n >= 1, 'a positive integer')
_natural = _number(int, lambda n: n >= 0, 'an integer, 0 or more')
_amount = _number(float, lambda x: 0 <= x < float('inf'), 'a number, 0 or more')
_positive = _number(float, lambda x: 0 < x < float('inf'), 'a positive number')
_fraction = _number(_of_fraction, lambda x: 0 < x <= 1, 'a number above 0, at most 1, such as 0.875 or 224/256')
_share = _number(float, lambda x: 0 <= x <= 1, 'a number from 0 to 1')


def _told_defaults(root: argparse.ArgumentParser) -> argparse.ArgumentParser:
    for action in root._actions:
        if action.default not in (None, argparse.SUPPRESS, '', {}) and '%(default)' not in (action.help or ''):
            action.help = f'{action.help or ""} (default: %(default)s)'.strip()
    return root


def training_parser(recipes: str) -> argparse.ArgumentParser:
    """Options of a training run; `recipes` are named in the help."""
    root = argparse.ArgumentParser(
        prog='train_classifier', allow_abbrev=False, description='Train a classifier of timm or of the plugin.',
        epilog=f'recipes: {recipes}')
    root.add_argument('--config', metavar='RECIPE', help='a YAML file, or the name of a packaged recipe')
    _add_data(root)
    _add_model(root)
    _add_augmentation(root)
    _add_optimisation(root)
    _add_machine(root)
    _add_records(root)
    return _told_defaults(root)


def _add_data(root: argparse.ArgumentParser) -> None:
    add = root.add_argument_group('data').add_argument
    add('--data-dir', metavar='DIR', help='root of the data: folders or tar files of the splits')
    add('--dataset', default='', metavar='NAME', help='torch/cifar10, hfds/…, wds/…; empty for folders and tar files')
    add('--dataset-download', action=argparse.BooleanOptionalAction, default=False, help='where timm can (torch/, …)')
    add('--val-split', default='validation')
    add('--val-num-samples', type=_count, help='of a stream (wds/, hfids/)')
    add('--class-map', default='', metavar='FILE')
    add('-b', '--batch-size', type=_count, default=128, help='of one process')
    add('-vb', '--validation-batch-size', type=_count)
    add('-j', '--workers', type=_natural, default=2, help='loading processes')
    add('--pin-mem', action=argparse.BooleanOptionalAction, default=False)
    add('--cache-images', action=argparse.BooleanOptionalAction, default=False, help='keep decoded images in memory')
    add('--corrupt-images', choices=('skip', 'fail'), default='fail', help='what an unreadable image does')
    add('--input-size', type=_count, nargs=3, metavar=('C', 'H', 'W'))
    add('--img-size', type=_count)
    add('--crop-pct', type=_fraction, help='of the resized image; 224/256 too')
    add('--crop-mode', choices=('center', 'squash', 'border'))
    add('--mean', type=float, nargs='+')
    add('--std', type=_positive, nargs='+')
    add('--interpolation', choices=('', *_INTERPOLATIONS), default='')


def _add_model(root: argparse.ArgumentParser) -> None:
    add = root.add_argument_group('model').add_argument
    add('--model', default='se_resnet50_plugin')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    add('--num-classes', type=_count, help='as many as the data has, if it says so')
    add('--pretrained', action=argparse.BooleanOptionalAction, default=False)


def _add_augmentation(root: argparse.ArgumentParser) -> None:
    add = root.add_argument_group('training data').add_argument
    add('--train-split', default='train')
    add('--train-num-samples', type=_count, help='of a stream')
    add('--no-aug', action=argparse.BooleanOptionalAction, default=False)
    add('--train-img-size', type=_count, help='smaller than that of the evaluation, to train faster')
    add('--full-size-epochs', type=_natural, default=0, metavar='N', help='of these, the last ones, not so')
    add('--train-crop-mode', choices=('rrc', 'rkrc', 'rkrr', 'pad'), default='rrc',
        help="timm's, or pad: zeros around the resized image and a random crop of it, as the papers do for CIFAR; "
             'scale, ratio and colour jitter are then not used')
    add('--crop-padding', type=_natural, default=4, help='pixels on each side, for pad; none for smaller images')
    add('--scale', type=_positive, nargs=2, default=[0.08, 1.0])
    add('--ratio', type=_positive, nargs=2, default=[3 / 4, 4 / 3])
    add('--hflip', type=_share, default=0.5)
    add('--vflip', type=_share, default=0.0)
    add('--color-jitter', type=_amount, default=0.4)
    add('--aa', metavar='NAME', help='AutoAugment, RandAugment, … in timm\'s words, such as rand-m7-mstd0.5-inc1')
    add('--aug-repeats', type=_natural, default=0, help='repeated augmentation')
    add('--reprob', type=_share, default=0.0, help='random erasing')
    add('--remode', choices=('const', 'rand', 'pixel'), default='pixel')
    add('--mixup', type=_amount, default=0.0)
    add('--cutmix', type=_amount, default=0.0)
    add('--mixup-prob', type=_share, default=1.0)
    add('--mixup-switch-prob', type=_share, default=0.5)
    add('--mixup-mode', choices=('batch', 'pair', 'elem'), default='batch')
    add('--mixup-off-epoch', type=_natural, default=0)
    add('--smoothing', type=_share, default=0.0)
    add('--bce-loss', action=argparse.BooleanOptionalAction, default=False)
    add('--bce-target-thresh', type=_share)


def _add_optimisation(root: argparse.ArgumentParser) -> None:
    add = root.add_argument_group('optimisation').add_argument
    add('--drop-path', type=_share)
    add('--epochs', type=_count, default=100)
    add('--opt', default='sgd', help="timm's name; its sgd is Nesterov's, momentum is the plain one")
    add('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    add('--lr', type=_positive, help='used instead of --lr-base')
    add('--lr-base', type=_positive, default=0.1, help='for --lr-base-size images; scaled to the global batch')
    add('--lr-base-size', type=_count, default=256)
    add('--lr-base-scale', choices=('linear', 'sqrt'), help='sqrt for ada… and lamb, else linear')
    add('--momentum', type=_share, default=0.9)
    add('--weight-decay', type=_amount, default=2e-5)
    add('--clip-grad', type=_positive)
    add('--clip-mode', choices=('norm', 'value', 'agc'), default='norm')
    add('--grad-accum-steps', type=_count, default=1)
    add('--sched', choices=_SCHEDULES, default='cosine')
    add('--sched-on-updates', action=argparse.BooleanOptionalAction, default=False)
    add('--warmup-epochs', type=_natural, default=0)
    add('--warmup-lr', type=_amount, default=1e-5)
    add('--warmup-prefix', action=argparse.BooleanOptionalAction, default=False)
    add('--min-lr', type=_amount, default=0.0)
    add('--decay-epochs', type=_positive, default=30)
    add('--decay-milestones', type=_count, nargs='+', default=[90, 180, 270])
    add('--decay-rate', type=_positive, default=0.1)
    add('--cooldown-epochs', type=_natural, default=0)
    add('--patience-epochs', type=_natural, default=10)
    add('--eval-metric', choices=('top1', 'loss'), default='top1', help='of the best checkpoint and of a plateau')
    add('--sync-bn', action=argparse.BooleanOptionalAction, default=False)
    add('--grad-checkpointing', action=argparse.BooleanOptionalAction, default=False)
    add('--torchcompile', nargs='?', const='inductor', metavar='BACKEND',
        help='train through torch.compile, with inductor if no other is named, which on a CPU needs a C++ compiler')
    add('--model-ema', action=argparse.BooleanOptionalAction, default=False)
    add('--model-ema-decay', type=_share, default=0.9998)
    add('--model-ema-warmup', action=argparse.BooleanOptionalAction, default=False)


def _add_machine(root: argparse.ArgumentParser) -> None:
    add = root.add_argument_group('machine').add_argument
    add('--device', help='cuda where there is one, else cpu')
    add('--dist-backend', help="torch's; gloo on the CPU and nccl on CUDA if not given")
    add('--amp', action=argparse.BooleanOptionalAction, default=False)
    add('--amp-dtype', choices=('bfloat16', 'float16'), default='float16')
    add('--model-dtype', choices=('float32', 'bfloat16', 'float64'), default='float32')
    add('--channels-last', action=argparse.BooleanOptionalAction, default=False)
    add('--deterministic', action=argparse.BooleanOptionalAction, default=False)
    add('--seed', type=_natural, default=42)


def _add_records(root: argparse.ArgumentParser) -> None:
    add = root.add_argument_group('records').add_argument
    add('--output', default='work_dirs', metavar='DIR')
    add('--experiment', metavar='NAME', help='folder in it; <recipe>/<model>-seed<seed> if not given')
    add('--resume', metavar='CHECKPOINT', help='auto for the last whole one of this experiment')
    add('--recovery-interval', type=_natural, default=0, metavar='N', help='save every N batches too')
    add('--log-interval', type=_count, default=50, metavar='N', help='batches between plain log lines')
    add('--tensorboard', action=argparse.BooleanOptionalAction, default=False)
    add('--results', metavar='CSV', help='file that gets a row when the run has finished; the curves go beside it')


def evaluation_parser() -> argparse.ArgumentParser:
    """Options of an evaluation."""
    root = argparse.ArgumentParser(
        prog='evaluate_classifier', allow_abbrev=False,
        description='Evaluate a classifier of timm or of the plugin, or a checkpoint of train_classifier.')
    add = root.add_argument
    add('--checkpoint', metavar='FILE', help='of train_classifier, whose model and data options then hold, or weights')
    add('--use-ema', action=argparse.BooleanOptionalAction, default=True, help='averaged weights, if there are any')
    _add_data(root)
    _add_model(root)
    _add_machine(root)
    add = root.add_argument_group('records').add_argument
    add('--real-labels', nargs='?', const='', metavar='JSON', help="ImageNet's real labels; timm's copy without a file")
    add('--output', metavar='DIR', help='folder for metrics, accuracy by class and the confusion matrix')
    return _told_defaults(root)
