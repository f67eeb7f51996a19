"""Augmentation: of an image by timm's transforms, of a batch by timm's erasing and mixing."""

from argparse import Namespace
from typing import Any

import torch
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms

__all__ = ['BatchAugmentation', 'train_transform']


def train_transform(options: Namespace, config: dict[str, Any]) -> Any:
    """Transform of a training image: from a PIL image to bytes, (C, H, W).

    Raises:
        ValueError: a padded image smaller than the crops of it.
    """
    full = config['input_size'][-2:]
    size = (options.train_img_size,) * 2 if options.train_img_size else full
    if options.train_crop_mode == 'pad' and not options.no_aug:
        # He et al., 2015 (arXiv 1512.03385), section 4.2. timm has no such crop.
        largest = min(full) + 2 * options.crop_padding
        if max(size) > largest:
            raise ValueError(f'--train-img-size {max(size)} is not allowed with --train-crop-mode pad; allowed: '
                             f'up to {largest}, the padded image')
        return transforms.Compose([
            transforms.Resize(full), transforms.RandomCrop(size, padding=options.crop_padding),
            transforms.RandomHorizontalFlip(options.hflip), transforms.PILToTensor()])
    return create_transform(
        size if size[0] != size[1] else size[0], is_training=True, no_aug=options.no_aug,
        train_crop_mode=options.train_crop_mode if options.train_crop_mode != 'pad' else None, scale=options.scale,
        ratio=options.ratio, hflip=options.hflip, vflip=options.vflip, color_jitter=options.color_jitter,
        auto_augment=options.aa, interpolation=options.interpolation or 'random', mean=config['mean'],
        std=config['std'], use_prefetcher=True)


class BatchAugmentation:
    """A batch as the network gets it in training: memory format, erasing, mixing.

    Args:
        options: of the run.
        classes: of the network.
        device: of the batches.

    Raises:
        ValueError: an odd batch that is to be mixed.
    """

    def __init__(self, options: Namespace, classes: int, device: torch.device) -> None:
        self.channels_last, self.mixes_until = options.channels_last, options.mixup_off_epoch
        self.erase: RandomErasing | None = None
        self.mix: Mixup | None = None
        if options.reprob and not options.no_aug:
            self.erase = RandomErasing(options.reprob, mode=options.remode, device=device)
        if options.mixup or options.cutmix:
            if options.batch_size % 2:
                raise ValueError(
                    f'--batch-size {options.batch_size} is not allowed with --mixup or --cutmix; allowed: even')
            self.mix = Mixup(
                mixup_alpha=options.mixup, cutmix_alpha=options.cutmix, prob=options.mixup_prob,
                switch_prob=options.mixup_switch_prob, mode=options.mixup_mode, label_smoothing=options.smoothing,
                num_classes=classes)

    def __call__(self, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and targets (N), which mixing turns into (N, classes)."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.erase is not None:
            x = self.erase(x)
        if self.mix is not None:
            self.mix.mixup_enabled = not 0 < self.mixes_until <= epoch
            x, y = self.mix(x, y)
        return x, y
