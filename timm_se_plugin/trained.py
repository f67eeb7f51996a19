"""What a training run left behind: the model with its weights, and what the run says of itself."""

import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from .models._builder import resolve
from .models._registry import architectures
from .placement.spec import split_attention_kwargs
from .weights.convert import read_weights
from .weights.model_card import Facts

__all__ = ['Run', 'read_run']

# What a card says of the recipe, by the names of timm's options.
_RECIPE = (
    'epochs', 'batch_size', 'grad_accum_steps', 'opt', 'lr', 'sched', 'warmup_epochs', 'weight_decay', 'momentum',
    'smoothing', 'mixup', 'cutmix', 'aa', 'reprob', 'drop_path', 'model_ema', 'amp', 'seed')


class Run(NamedTuple):
    """A trained classifier, its preprocessing, and what a model card says of its training."""

    model: nn.Module
    data_config: dict[str, Any]
    facts: Facts


def read_run(folder: str | Path) -> Run | None:
    """Read the folder of a run of this package's trainer or timm's train.py; None if it is none.

    Of the best checkpoint, or the last one if there is no best, the averaged weights are taken if there are any, whose
    accuracy the run has measured. No path of this machine is repeated.

    Raises:
        ValueError: a checkpoint that is broken, or does not say what it is of.
    """
    paths = [path for name in ('model_best.pth.tar', 'last.pth.tar') if (path := Path(folder, name)).is_file()]
    if not paths:
        return None
    weights, _ = read_weights(paths[0])
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(paths[0], map_location='cpu', weights_only=True, mmap=True)
    args = vars(checkpoint.get('args') or argparse.Namespace())
    if 'model' not in args:
        raise ValueError(f'{paths[0]} does not say which model it is of; allowed: a checkpoint with the args of timm')
    model = _model(args)
    model.load_state_dict(weights)
    data_config = resolve_data_config(args, model=model)
    return Run(model, data_config, _facts(args, Path(folder, 'summary.csv'), checkpoint.get('epoch')))


def _model(args: dict[str, Any]) -> nn.Module:
    name, _, tag = args['model'].partition('.')
    kwargs = dict(args.get('model_kwargs') or {})
    arch = architectures.get(name)
    if arch is not None and args.get('pretrained'):  # whose weights have decided on the attention
        options = split_attention_kwargs(kwargs)
        attn, _ = resolve(arch, options, tag or None)
        kwargs.update(attn.to_kwargs() if attn else options)
    for option in ('num_classes', 'in_chans'):
        if args.get(option) is not None:
            kwargs.setdefault(option, args[option])
    return timm.create_model(name, **kwargs)


def _facts(args: dict[str, Any], summary: Path, epoch: int | None) -> Facts:
    data = args.get('dataset') or Path(args.get('data_dir') or '').name
    recipe = ', '.join(f'{name} {args[name]}' for name in _RECIPE if args.get(name) not in (None, '', False))
    if args.get('config'):
        recipe = f"`{Path(args['config']).stem}`: {recipe}"
    rows = []
    if summary.is_file():
        with summary.open(newline='', encoding='utf-8') as file:
            rows = [row for row in csv.DictReader(file) if row.get('epoch') == str(epoch)]
    return Facts(data=data or None, recipe=recipe or None, results=rows[-1] if rows else None,
                 results_file=summary.name if rows else None)
