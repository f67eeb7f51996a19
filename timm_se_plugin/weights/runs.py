"""What a training left behind: the model with its weights, and what the run says about itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.data import resolve_data_config
from torch import nn

from ..files.tables import read_table
from ..models._registry import architectures
from ..models._resolution import resolve
from ..placement.spec import split_attention_kwargs
from .facts import Facts
from .reading import read_weights

__all__ = ['TrainedClassifier', 'build_model', 'model_kwargs', 'read_run']

# The options, by timm's names, that a model card repeats as the recipe.
_RECIPE = (
    'epochs', 'batch_size', 'grad_accum_steps', 'opt', 'lr', 'lr_base', 'lr_base_size', 'sched', 'warmup_epochs',
    'weight_decay', 'momentum', 'smoothing', 'mixup', 'cutmix', 'aa', 'reprob', 'drop_path', 'model_ema', 'amp', 'seed')


class TrainedClassifier(NamedTuple):
    """A trained classifier.

    Args:
        model: the model with its weights.
        data_config: its preprocessing.
        facts: what a model card says about its training.
        label_names: the names of its classes; None if the run does not tell.
    """

    model: nn.Module
    data_config: dict[str, Any]
    facts: Facts
    label_names: list[str] | None


def read_run(folder: str | Path) -> TrainedClassifier | None:
    """Read the folder of a run of this package's trainer or timm's train.py.

    The weights are those of the best checkpoint, or the last one if there is no best; if it has averaged weights, whose
    accuracy the run then measured, these are taken. The result names no path of the machine that trained.

    Returns:
        The trained classifier; None if the folder is not of a run.

    Raises:
        ValueError: the checkpoint is broken, or does not say which model it belongs to.
    """
    paths = [path for name in ('model_best.pth.tar', 'last.pth.tar') if (path := Path(folder, name)).is_file()]
    if not paths:
        return None
    weights, said = read_weights(paths[0])
    args = said.get('args') or {}
    if 'model' not in args:
        raise ValueError(f"{paths[0]} does not say which model it belongs to, as timm's checkpoints do in args")
    model = build_model(args)
    model.load_state_dict(weights)
    data_config = resolve_data_config(args, model=model)
    facts = _facts(args, Path(folder, 'summary.csv'), said.get('epoch'))
    names = said.get('label_names')
    known = isinstance(names, list) and len(names) == model.num_classes
    return TrainedClassifier(model, data_config, facts, names if known else None)


def build_model(args: Mapping[str, Any]) -> nn.Module:
    """The network that a run trained, without its weights.

    Args:
        args: options of the run, by the names of this package's trainer and timm's train.py.
    """
    kwargs = model_kwargs(args)
    if args.get('num_classes') is not None:
        kwargs.setdefault('num_classes', args['num_classes'])
    return timm.create_model(args['model'], **kwargs)


def model_kwargs(args: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model_kwargs`` that build the network of a run again without loading weights.

    Args:
        args: options of the run, as for :func:`build_model`.
    """
    name, _, tag = args['model'].partition('.')
    kwargs = dict(args.get('model_kwargs') or {})
    if args.get('in_chans') is not None:
        kwargs.setdefault('in_chans', args['in_chans'])
    arch = architectures.get(name)
    if arch is not None and args.get('pretrained'):  # the weights of the tag decided which attention the model has
        options = split_attention_kwargs(kwargs)
        attn, _ = resolve(arch, options, tag or None)
        kwargs.update(attn.to_kwargs() if attn else options)
    return kwargs


def _facts(args: Mapping[str, Any], summary: Path, epoch: int | None) -> Facts:
    data = args.get('dataset') or Path(args.get('data_dir') or '').name
    args = {**args, 'lr_base': None, 'lr_base_size': None} if args.get('lr') else args
    recipe = ', '.join(f'{name} {args[name]}' for name in _RECIPE
                       if args.get(name) or (name == 'seed' and args.get(name) is not None))
    if args.get('config'):
        recipe = f"`{Path(args['config']).stem}`: {recipe}"
    rows = [row for row in read_table(summary) if row.get('epoch') == str(epoch)]
    return Facts(data=data or None, recipe=recipe or None, results=rows[-1] if rows else None,
                 results_file=summary.name if rows else None)
