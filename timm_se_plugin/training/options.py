"""The options of training and of evaluation, with timm's names where timm has them."""

import argparse
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from ..files.key_values import KeyValues
from ..files.numbers import count, number, share

__all__ = ['RECIPES', 'RUNTIME', 'evaluation_parser', 'list_recipes', 'training_parser']

RECIPES = Path(__file__).parent / 'recipes'
_SCHEDULES = ('cosine', 'tanh', 'step', 'constant', 'multistep', 'plateau', 'poly', 'rsqrt', 'none')  # timm's
_INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')  # Pillow's, as timm names them

# Options that do not change what a run computes: a resumed run may change them.
RUNTIME = (
    'config', 'data_dir', 'dataset_download', 'validation_batch_size', 'workers', 'pin_mem', 'cache_images',
    'corrupt_images', 'device', 'dist_backend', 'output', 'experiment', 'resume', 'recovery_interval', 'log_interval',
    'tensorboard', 'results')


_natural = number(int, lambda n: n >= 0, 'an integer of 0 or more')
_seed = number(int, lambda n: 0 <= n < 2**32, 'an integer from 0 to 4294967295')  # numpy's limit
_amount = number(float, lambda x: 0 <= x < float('inf'), 'a number of 0 or more')
_positive = number(float, lambda x: 0 < x < float('inf'), 'a positive number')


def _quotient(text: str) -> float:
    value = float(Fraction(text))
    size, _, whole = text.partition('/')
    if whole and math.floor(int(size) / value) < int(whole):  # timm's size before the crop, lowered by the rounding
        return math.nextafter(value, 0)
    return value


_fraction = number(
    _quotient, lambda x: 0 < x <= 1, 'a number above 0 and up to 1, such as 0.875 or 224/256')


def _frozen_part(text: str) -> str:
    if text not in ('backbone', 'base') and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f'{text!r} is neither backbone nor base nor a number of stages')
    return text


class _Side(argparse.Action):
    """Set ``--img-size``, and the height and the width of an ``--input-size`` of a recipe or a checkpoint."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, side: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, side)
        if namespace.input_size:
            namespace.input_size = [namespace.input_size[0], side, side]


def _with_defaults(root: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the default of each option to its help."""
    for action in root._actions:
        if action.default not in (None, argparse.SUPPRESS, '', {}) and action.help != argparse.SUPPRESS and (
                '%(default)' not in (action.help or '')):
            action.help = f'{action.help or ""} (default: %(default)s)'.strip()
    return root


def _adders(group: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Functions that add an option with a value, and one that is on or off (``--amp``, ``--no-amp``)."""
    return group.add_argument, partial(group.add_argument, action=argparse.BooleanOptionalAction, default=False)


def list_recipes() -> list[str]:
    """Names of the packaged recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob('*.yaml'))


def training_parser(root: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """Options of a training run, in a parser of their own or added to `root`."""
    root = root or argparse.ArgumentParser(
        prog='timm-se train', allow_abbrev=False, description='Train a classifier of timm or of the plugin.')
    root.epilog = f'recipes: {", ".join(list_recipes())}'
    root.add_argument('--config', metavar='RECIPE', help='YAML file with options, or the name of a packaged recipe')
    _add_data(root)
    _add_model(root)
    _add_augmentation(root)
    _add_optimisation(root)
    _add_machine(root)
    _add_records(root)
    return _with_defaults(root)


def _add_data(root: argparse.ArgumentParser) -> None:
    add, switch = _adders(root.add_argument_group('data'))
    add('--data-dir', metavar='DIR',
        help='folder with a folder or a tar file for each split, or with what --dataset reads or downloads')
    add('--dataset', default='', metavar='NAME',
        help='data set by its source in timm: torch/cifar10, hfds/NAME, hfids/NAME, tfds/NAME, wds/NAME; not given for '
             'folders and tar files')
    add('--task', choices=('classification', 'multilabel'), default='classification',
        help='multilabel for pictures with any number of labels: a CSV file for each split, such as train.csv in '
             '--data-dir, with the path of a picture and then a column of 0 and 1 for each label')
    add('--input-key', metavar='NAME',
        help='column of the images in a data set with columns (hfds/…); image if not given')
    add('--target-key', metavar='NAME', help='column of the labels in a data set with columns; label if not given')
    switch('--dataset-download', help='download the data set where its source can (torch/…)')
    add('--val-split', default='validation', metavar='NAME', help='split to evaluate on')
    add('--val-share', type=number(float, lambda x: 0 <= x < 1, 'a number from 0 to below 1'), default=0.0,
        metavar='X',
        help='share of the pictures of each class to evaluate on, where --data-dir is a folder of classes without '
             'splits, or one CSV file of --task multilabel; few pictures change sides when others are added or '
             'removed; 0 for data that has splits')
    add('--val-share-seed', type=_natural, default=0, metavar='N', help='seed that chooses the pictures of --val-share')
    add('--val-num-samples', type=count, metavar='N',
        help='number of images in --val-split, which timm cannot find out for a stream (wds/, hfids/)')
    add('--class-map', default='', metavar='FILE',
        help='text file with the names of the classes, one on each line, in the order of their indices')
    add('-b', '--batch-size', type=count, default=128, metavar='N', help='images in a batch of one process')
    add('-vb', '--validation-batch-size', type=count, metavar='N',
        help='images in a batch of the evaluation; --batch-size if not given')
    add('-j', '--workers', type=_natural, default=2, metavar='N',
        help='processes that load images, for each process that trains; 0 loads between the steps')
    switch('--pin-mem', help='load into pinned memory, which copies to a GPU faster')
    switch('--cache-images', help='keep decoded images in the memory of each worker')
    add('--corrupt-images', choices=('skip', 'fail'), default='fail',
        help='whether an unreadable image ends the run or is left out with a warning')
    switch('--exif-orientation', default=True,
           help='turn pictures upright as their EXIF orientation says; timm takes pictures as they are stored')
    add('--input-size', type=count, nargs=3, metavar=('C', 'H', 'W'),
        help="channels, height and width of an image in pixels; the model's if not given. Another number of "
             'channels than 3 is that of the model too')
    add('--img-size', type=count, action=_Side, metavar='N',
        help='height and width of an image in pixels, instead of --input-size')
    add('--crop-pct', type=_fraction, metavar='X',
        help='side of the centre crop by the side of the resized image, such as 0.875 or 224/256')
    add('--crop-mode', choices=('center', 'squash', 'border'),
        help='how the evaluation makes an image square: center crops its longer side, squash changes its proportions, '
             'border pads its shorter side')
    add('--mean', type=float, nargs='+', metavar='X', help='means of the channels, with pixels from 0 to 1')
    add('--std', type=_positive, nargs='+', metavar='X', help='standard deviations of the channels')
    add('--interpolation', choices=('', *_INTERPOLATIONS), default='',
        help="how images are resized; if not given, bilinear or bicubic at random in training, bilinear with "
             "--train-crop-mode pad, and the model's own in the evaluation and with --no-aug")


def _add_model(root: argparse.ArgumentParser) -> None:
    add, switch = _adders(root.add_argument_group('model'))
    add('--model', default='se_resnet50_plugin', metavar='NAME', help='any name of timm.list_models()')
    add('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
        help='keywords of the model, such as attn=se attn_rd_ratio=1/16')
    add('--num-classes', type=count, metavar='N', help='number of classes; that of the data if not given')
    switch('--pretrained', help='start from published weights')


def _add_augmentation(root: argparse.ArgumentParser) -> None:
    add, switch = _adders(root.add_argument_group('training data'))
    add('--train-split', default='train', metavar='NAME', help='split to train on')
    add('--train-num-samples', type=count, metavar='N',
        help='number of images in --train-split, which timm cannot find out for a stream (wds/, hfids/)')
    # argparse.BooleanOptionalAction takes any name that begins with --no- for off.
    add('--no-aug', action='store_true', help='resize and crop the centre, without any augmentation of the image')
    add('--no-no-aug', action='store_false', dest='no_aug', help=argparse.SUPPRESS)
    add('--train-img-size', type=count, metavar='N',
        help='height and width of training images in pixels (smaller images train faster); if not given, those of the '
             'evaluation')
    add('--full-size-epochs', type=_natural, default=0, metavar='N',
        help='train the last N epochs at the full image size')
    add('--train-crop-mode', choices=('rrc', 'rkrc', 'rkrr', 'pad'), default='rrc',
        help="random crops: rrc, rkrc and rkrr are timm's; pad puts zeros around the resized image and crops it as the "
             'papers do for CIFAR, and leaves --scale, --ratio and --color-jitter unused')
    add('--crop-padding', type=_natural, default=4, metavar='N',
        help='pixels of zeros on each side of a full-size image, for --train-crop-mode pad')
    add('--scale', type=_positive, nargs=2, default=[0.08, 1.0], metavar=('MIN', 'MAX'),
        help='area of a random crop by the area of the image')
    add('--ratio', type=_positive, nargs=2, default=[3 / 4, 4 / 3], metavar=('MIN', 'MAX'),
        help='width of a random crop by its height, before it is resized')
    add('--hflip', type=share, default=0.5, metavar='P', help='probability of a flip from left to right')
    add('--vflip', type=share, default=0.0, metavar='P', help='probability of a flip upside down')
    add('--color-jitter', type=_amount, default=0.4, metavar='X',
        help='range of random brightness, contrast and saturation; 0 for none')
    add('--aa', metavar='NAME',
        help='AutoAugment, RandAugment and others by their names in timm, such as rand-m7-mstd0.5-inc1')
    add('--aug-repeats', type=_natural, default=0, metavar='N',
        help='repeated augmentation: an epoch has N augmentations each of an Nth of the images; 0 for every image once')
    add('--reprob', type=share, default=0.0, metavar='P', help='probability of random erasing')
    add('--remode', choices=('const', 'rand', 'pixel'), default='pixel',
        help='what random erasing fills in: zeros, one random colour, or random pixels')
    add('--mixup', type=_amount, default=0.0, metavar='ALPHA', help='alpha of Mixup; 0 for none')
    add('--cutmix', type=_amount, default=0.0, metavar='ALPHA', help='alpha of CutMix; 0 for none')
    add('--mixup-prob', type=share, default=1.0, metavar='P', help='probability that a batch is mixed')
    add('--mixup-switch-prob', type=share, default=0.5, metavar='P',
        help='probability of CutMix instead of Mixup where both are given')
    add('--mixup-mode', choices=('batch', 'pair', 'elem'), default='batch',
        help='whether a batch, each pair or each image has a mixing weight of its own')
    add('--mixup-off-epoch', type=_natural, default=0, metavar='N',
        help='mix nothing from epoch N on, counted from 0; 0 mixes in every epoch')
    add('--smoothing', type=share, default=0.0, metavar='X', help='label smoothing')
    add('--class-weight', choices=('inv_freq', 'effective_num', 'neg_pos'),
        help="weights in the loss for classes with few pictures, by timm's names: inv_freq by the inverse of their "
             'number, effective_num by the inverse of their effective number (arXiv 1901.05555); and for binary '
             'cross-entropy neg_pos, which weighs the pictures of a class by the number of the other pictures over '
             'their number')
    switch('--bce-loss', help='train with binary cross-entropy instead of cross-entropy')
    add('--bce-target-thresh', type=share, metavar='X',
        help='with --bce-loss, turn targets above X into 1 and the others into 0')


def _add_optimisation(root: argparse.ArgumentParser) -> None:
    add, switch = _adders(root.add_argument_group('optimisation'))
    add('--freeze', type=_frozen_part, metavar='PART',
        help='part to freeze, with the running statistics of its BatchNorm layers: backbone for all but the '
             'classifier, base for all but the classifier and the attention, or N for the stem and the first N stages')
    add('--drop-path', type=share, metavar='P',
        help="rate of stochastic depth in the last block; the model's own if not given")
    add('--epochs', type=count, default=100, metavar='N',
        help='number of epochs; --cooldown-epochs come in addition, and so do --warmup-epochs with --warmup-prefix')
    add('--opt', default='sgd', metavar='NAME',
        help="optimizer by its name in timm, where sgd has Nesterov's momentum and momentum the plain one")
    add('--opt-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
        help='further keywords of the optimizer')
    add('--lr', type=_positive, metavar='X', help='learning rate, not scaled; used instead of --lr-base')
    add('--lr-base', type=_positive, default=0.1, metavar='X',
        help='learning rate for --lr-base-size images in an update, scaled to the real number of images')
    add('--lr-base-size', type=count, default=256, metavar='N', help='images in an update that --lr-base is for')
    add('--lr-base-scale', choices=('linear', 'sqrt'),
        help='how the learning rate grows with the images in an update; if not given, sqrt for optimizers whose name '
             'has ada or lamb in it, else linear')
    add('--momentum', type=share, default=0.9, metavar='X', help='momentum of the optimizer')
    add('--weight-decay', type=_amount, default=2e-5, metavar='X', help='weight decay')
    add('--layer-decay', type=_fraction, metavar='X',
        help='learning rate of a layer by that of the layer after it, by timm\'s order of the layers, such as 0.75')
    add('--attn-weight-decay', type=_amount, metavar='X',
        help="weight decay of the attention's own parameters; --weight-decay if not given")
    add('--attn-lr-scale', type=_positive, default=1.0, metavar='X',
        help="learning rate of the attention's own parameters, as a multiple of that of the others")
    add('--clip-grad', type=_positive, metavar='X', help='clip gradients at X; they are not clipped if not given')
    add('--clip-mode', choices=('norm', 'value', 'agc'), default='norm',
        help='clip the norm of all gradients, each value, or each norm relative to that of the weights')
    add('--grad-accum-steps', type=count, default=1, metavar='N', help='batches whose gradients one update adds up')
    add('--sched', choices=_SCHEDULES, default='cosine', help='schedule of the learning rate')
    switch('--sched-on-updates', help='change the learning rate after each update instead of each epoch')
    add('--warmup-epochs', type=_natural, default=0, metavar='N', help='epochs in which the learning rate rises')
    add('--warmup-lr', type=_amount, default=1e-5, metavar='X', help='learning rate at the start of the warm-up')
    switch('--warmup-prefix', help='start the schedule after the warm-up instead of beneath it')
    add('--min-lr', type=_amount, default=0.0, metavar='X', help='lowest learning rate of the schedule')
    add('--decay-epochs', type=_positive, default=30, metavar='N',
        help='epochs between two steps of --sched step, or of the final decay of --sched rsqrt')
    add('--decay-milestones', type=count, nargs='+', default=[90, 180, 270], metavar='N',
        help='the first epochs, counted from 1, of each next step of --sched multistep')
    add('--decay-rate', type=_positive, default=0.1, metavar='X',
        help='factor of the learning rate at each step of --sched step, multistep and plateau; power of --sched poly')
    add('--cooldown-epochs', type=_natural, default=0, metavar='N',
        help='further epochs at the lowest learning rate, after --sched cosine, tanh, poly or rsqrt')
    add('--patience-epochs', type=_natural, default=10, metavar='N',
        help='epochs without progress before --sched plateau lowers the learning rate')
    add('--eval-metric', choices=('top1', 'loss'), default='top1',
        help='metric of the validation split that chooses the best checkpoint, and that --sched plateau watches; '
             'with --task multilabel, top1 is the mean average precision')
    switch('--sync-bn', help='compute the statistics of BatchNorm over all processes; CUDA only')
    switch('--grad-checkpointing', help='save memory: compute activations again in the backward pass')
    add('--torchcompile', nargs='?', const='inductor', metavar='BACKEND',
        help='train through torch.compile with this backend; inductor if none is named, which needs a C++ compiler on '
             'the CPU')
    switch('--model-ema',
           help='average the weights over the updates; the averaged weights are evaluated, and saved beside the others')
    add('--model-ema-decay', type=share, default=0.9998, metavar='X',
        help='share of the average that an update keeps')
    switch('--model-ema-warmup', help='begin with a smaller --model-ema-decay that rises')


def _add_machine(root: argparse.ArgumentParser) -> None:
    add, switch = _adders(root.add_argument_group('machine'))
    add('--device', metavar='NAME',
        help='device, such as cpu or cuda:1; if not given, cuda where there is one, else cpu')
    add('--dist-backend', metavar='NAME',
        help='backend of torch.distributed; if not given, nccl on CUDA and gloo on the CPU')
    switch('--amp', help='automatic mixed precision')
    add('--amp-dtype', choices=('bfloat16', 'float16'), default='float16', help='data type of --amp')
    add('--model-dtype', choices=('float32', 'bfloat16', 'float64'), default='float32',
        help='data type of the weights and the images')
    switch('--channels-last', help='memory format channels_last, which convolutions are often faster in')
    switch('--deterministic', help='use only operators that give equal bits in equal runs')
    add('--seed', type=_seed, default=42, metavar='N', help='seed of all randomness')


def _add_records(root: argparse.ArgumentParser) -> None:
    add, switch = _adders(root.add_argument_group('records'))
    add('--output', default='work_dirs', metavar='DIR', help='folder for the folders of the runs')
    add('--experiment', metavar='NAME',
        help="folder of this run in --output; <recipe>/<model>-seed<seed> if not given, with 'train' for no recipe")
    add('--resume', metavar='CHECKPOINT',
        help="checkpoint to continue from; auto for the last whole one in the run's folder, if there is one")
    add('--recovery-interval', type=_natural, default=0, metavar='N',
        help='save a checkpoint every N batches too; 0 saves only after each epoch')
    add('--log-interval', type=count, default=50, metavar='N',
        help='batches between two lines of the log, where the output is not a terminal')
    switch('--tensorboard', help="write the curves for TensorBoard into the run's folder")
    add('--results', metavar='CSV',
        help='table that gets a row when the run has finished; the curves go into <table>-curves.csv beside it')


def evaluation_parser(
        root: argparse.ArgumentParser | None = None, real_labels: bool = True) -> argparse.ArgumentParser:
    """Options of an evaluation, in a parser of their own or added to `root`, with or without ``--real-labels``."""
    root = root or argparse.ArgumentParser(
        prog='timm-se evaluate', allow_abbrev=False,
        description='Evaluate a classifier of timm or of the plugin, or a checkpoint of timm-se train.')
    add, switch = _adders(root)
    add('--checkpoint', metavar='FILE',
        help='weights of the network; a checkpoint of timm-se train brings its options of model and data, unless '
             'they are given here')
    switch('--use-ema', default=True, help='take the averaged weights of the checkpoint, if it has some')
    _add_data(root)
    _add_model(root)
    _add_machine(root)
    add = root.add_argument_group('records').add_argument
    if real_labels:
        add('--real-labels', nargs='?', const='', metavar='JSON',
            help="evaluate with ImageNet's real labels too, from this file, or from timm's copy if no file is named")
    add('--output', metavar='DIR',
        help='folder for metrics.json, classes.csv and confusion.png, with more than 1,000 classes confusion.csv')
    return _with_defaults(root)
