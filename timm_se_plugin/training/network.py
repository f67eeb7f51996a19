"""The network of a training or an evaluation, built by timm from the options."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import load_checkpoint
from torch import nn

from ..models.names import create_network, keywords_of
from ..placement.record import check_attention_of_weights
from ..placement.structure import image_size, run_structure, structure_of
from ..weights.folders import saved_class_names
from ..weights.runs import channel_kwargs
from .folders import read_class_map
from .process import Process

__all__ = ['check_image_size', 'evaluated_network', 'label_names', 'moved']

_logger = logging.getLogger(__name__)


def moved(model: nn.Module, options: Namespace, process: Process) -> Any:
    """`model` on the process's device, in the data type and memory format that the options name."""
    model = model.to(process.device, getattr(torch, options.model_dtype))
    return model.to(memory_format=torch.channels_last) if options.channels_last else model


def evaluated_network(options: Namespace, process: Process) -> Any:
    """The network that the options of an evaluation name, with the weights of ``--checkpoint`` if that is given.

    Args:
        options: result of :func:`~timm_se_plugin.training.config.parse_evaluation`.
        process: the process whose device holds the network.

    Raises:
        ValueError: an unknown model, or a checkpoint of another model or of another attention.
    """
    if not (options.checkpoint or options.pretrained):  # timm's validate.py takes the published weights by itself
        _logger.warning('%s is evaluated with random weights; --pretrained takes published ones, and --checkpoint '
                        'those of a file', options.model)
    with keywords_of(options.model, options.model_kwargs):
        model = create_network(
            options.model, options.model_config, options.pretrained, num_classes=options.num_classes,
            **channel_kwargs(vars(options)))
    if options.checkpoint:
        check_attention_of_weights(model, options.told_attention)
        try:
            load_checkpoint(model, options.checkpoint, use_ema=options.use_ema)
        except RuntimeError as error:  # torch's own message lists every key
            raise ValueError(
                f'--checkpoint {options.checkpoint} does not fit --model {options.model} with '
                f'{model.num_classes} classes and --model-kwargs {options.model_kwargs}') from error
    return moved(model, options, process)


def check_image_size(model: Any, input_size: Sequence[int], train_size: int | None = None) -> None:
    """Refuse images of a size that a network does not take: another one than a ViT is made for, or too small a one.

    Args:
        model: the network.
        input_size: (C, H, W) of the images.
        train_size: ``--train-img-size``, the height and width of the images that are trained on at first.

    Raises:
        ValueError: the network does not take such images, though it takes those of its own size.
    """
    structure, (channels, *size) = structure_of(model), input_size
    asked = {'--img-size or --input-size': size, **({'--train-img-size': [train_size] * 2} if train_size else {})}
    own = image_size(model)
    for option, (height, width) in asked.items():
        images = channels, height, width
        if images == own or _takes(structure, images) or not _takes(structure, own):
            continue
        if model.pretrained_cfg.get('fixed_input_size'):
            needed = f'img_size={height}' if height == width else f"'img_size=({height},{width})'"
            other = f'make the network for images of another size, as by --model-kwargs {needed}'
        else:
            other = 'give a larger one'
        raise ValueError(f'the network takes no images of {height}x{width} pixels, but of {own[1]}x{own[2]}; leave out '
                         f'{option}, or {other}')


def _takes(structure: nn.Module, input_size: tuple[int, int, int]) -> bool:
    try:
        run_structure(structure, input_size)
    except ValueError:
        return False
    return True


def label_names(options: Namespace, model: Any, found: Sequence[str] | None) -> list[str] | None:
    """Names of a network's classes in the order of its outputs; None where they are not known.

    The names are read from the checkpoint or from the network's config.json. Where neither has them and all classes of
    the data are WordNet's, as ImageNet's folders are, the names are those of timm's subset of ImageNet with as many
    classes. With ``--class-map``, which gives the indices itself, the result is None.

    Args:
        options: result of :func:`~timm_se_plugin.training.config.parse_evaluation`.
        model: the network.
        found: names of the classes of the data.

    Raises:
        ValueError: ``--class-map`` gives a class of the network another index than the network has for it.
    """
    saved = saved_class_names(model)
    names = getattr(options, 'label_names', None) or (saved if len(saved) == model.num_classes else None)
    subset = infer_imagenet_subset(model)
    if not names and found and subset and not options.class_map:  # a guess, about which a class map may know better
        synsets = ImageNetInfo(subset).label_names()
        names = synsets if set(found) <= set(synsets) else None
    if not options.class_map:
        return list(names) if names else None
    own = {normalize('NFC', name): index for index, name in reversed([*enumerate(names or ())])}
    for name, index in read_class_map(options.class_map).items():
        if own.get(name, index) != index:
            raise ValueError(f'--class-map {options.class_map} gives the class {name!r} the index {index}, and the '
                             f'network has it at {own[name]}; give the file the order of the network, or leave out '
                             '--class-map: without it, classes are known by their names')
    return None
