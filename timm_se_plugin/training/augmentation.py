"""Augmentation by timm: transforms of single images, random erasing and mixing of whole batches."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from timm.utils import random_seed
from torch import Tensor
from torchvision import transforms

__all__ = ['BatchAugmentation', 'Transforms', 'train_transforms']


@dataclass
class Transforms:
    """The transforms of a run, from a PIL image to uint8 (C, H, W): `early` before epoch `switch`, `late` after."""

    early: Any
    late: Any
    switch: int = 0

    def __call__(self, epoch: int) -> Any:
        """The transform of an epoch; epochs are counted from 0."""
        return self.early if epoch < self.switch else self.late


def train_transforms(options: Namespace, config: dict[str, Any]) -> Transforms:
    """Transforms of training images, to ``--train-img-size``, and in the last ``--full-size-epochs`` to the full size.

    Args:
        options: the run's options.
        config: timm's data configuration of the model, whose ``input_size`` is the full size.

    Raises:
        ValueError: a crop larger than the padded image, full-size epochs where every epoch has the full size, or
            ``--aa`` for a network that takes four channels.
    """
    channels = config['input_size'][0]
    if options.aa and not options.no_aug and channels not in (1, 3):  # Pillow does not solarise or equalise RGBA
        raise ValueError(f'--aa {options.aa} is for 1 or 3 channels, and the network takes {channels}; '
                         "--aa '' leaves it out")
    if options.full_size_epochs and not options.train_img_size:
        raise ValueError(f'--full-size-epochs {options.full_size_epochs} needs --train-img-size: '
                         'without it, every epoch trains at the full image size')
    full = tuple(config['input_size'][-2:])
    small = (options.train_img_size,) * 2 if options.train_img_size else full
    return Transforms(
        _train_transform(options, config, full, small), _train_transform(options, config, full, full),
        options.epochs - options.full_size_epochs)


def _train_transform(options: Namespace, config: dict[str, Any], full: tuple[int, ...], size: tuple[int, ...]) -> Any:
    pads = options.train_crop_mode == 'pad' and not options.no_aug
    try:
        transform = create_transform(
            size if size[0] != size[1] else size[0], is_training=True, no_aug=options.no_aug,
            train_crop_mode=options.train_crop_mode if options.train_crop_mode != 'pad' else None, scale=options.scale,
            ratio=options.ratio, hflip=options.hflip, vflip=options.vflip,
            color_jitter=None if pads else options.color_jitter, auto_augment=options.aa,
            interpolation=options.interpolation or (config['interpolation'] if options.no_aug else 'random'),
            mean=config['mean'], std=config['std'], use_prefetcher=True)
    except (AssertionError, ValueError) as error:
        if not options.aa:
            raise
        raise ValueError(f'--aa {options.aa} is not an augmentation of timm, such as rand-m7-mstd0.5-inc1 or original '
                         f'({error})') from error
    _let_posterize_keep_nothing(transform)
    if pads:
        # timm lacks the crop of He et al., 2015 (arXiv 1512.03385), section 4.2; here it replaces timm's crop.
        padding = options.crop_padding if size == full else 0
        if max(size) > min(full) + 2 * padding:
            raise ValueError(f'--train-crop-mode pad cannot cut {max(size)} pixels out of an image that has '
                             f'{min(full) + 2 * padding} with its padding; give a smaller --train-img-size')
        interpolation: Any = str_to_interp_mode(options.interpolation or 'bilinear')
        transform.transforms[:1] = transforms.Resize(full, interpolation), transforms.RandomCrop(size, padding=padding)
    return transform


def _let_posterize_keep_nothing(transform: Any) -> None:
    """Let timm's posterize keep 0 bits of a pixel, as in ``rand-m9-mstd0.5-inc1``: Pillow 13 raises an error."""
    for part in transform.transforms:
        operators = (*getattr(part, 'ops', ()), *chain.from_iterable(getattr(part, 'policy', ())))
        for operator in operators:
            if getattr(operator, 'aug_fn', None) is posterize:
                operator.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


class BatchAugmentation:
    """Augmentation of whole batches: random erasing, and mixing of images and targets.

    Args:
        options: the run's options.
        classes: number of the network's classes.
        device: device of the batches.

    Raises:
        ValueError: Mixup or CutMix with an odd batch size, which timm does not mix.
    """

    def __init__(self, options: Namespace, classes: int, device: torch.device) -> None:
        self.mixes_until = options.mixup_off_epoch
        self.erase: RandomErasing | None = None
        self.mix: Mixup | None = None
        if options.reprob and not options.no_aug:
            self.erase = RandomErasing(options.reprob, mode=options.remode, device=device)
        if options.mixup or options.cutmix:
            if options.batch_size % 2:
                raise ValueError(f'--mixup and --cutmix mix images in pairs: --batch-size {options.batch_size} is odd')
            self.mix = Mixup(
                mixup_alpha=options.mixup, cutmix_alpha=options.cutmix, prob=options.mixup_prob,
                switch_prob=options.mixup_switch_prob, mode=options.mixup_mode, label_smoothing=options.smoothing,
                num_classes=classes, multi_label=options.task == 'multilabel')

    def erased(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """Erase random parts of images (N, C, H, W) in place; each image has a seed of its own."""
        if self.erase is not None:
            for image, seed in zip(x.split(1), seeds, strict=True):
                random_seed(seed)
                self.erase(image)
        return x

    def __call__(self, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Mixed images (N, C, H, W) and their targets: (N,), or (N, classes) after mixing or with several labels."""
        if self.mix is not None:
            self.mix.mixup_enabled = not 0 < self.mixes_until <= epoch
            x, y = self.mix(x, y)
        return x, y
