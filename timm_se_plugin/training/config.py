"""Options of a run, from a recipe and the command line."""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ..files.hub_files import SAVED_AT, read_config_json
from ..models.names import check_model
from ..weights.reading import read_weights
from ..weights.runs import FORMER, MULTILABEL, model_kwargs
from .checkpoint import BEST, LAST, runs_in
from .options import RECIPES, RUNTIME, evaluation_parser, list_recipes, training_parser

__all__ = [
    'different_options', 'list_recipes', 'options_of', 'own_options', 'parse_evaluation', 'parse_options',
    'read_recipe']

_PICKLED = ('.pth', '.tar', '.pt')
_WEIGHTS = (*_PICKLED, '.safetensors', '.bin', '.npz')
# Options that have a column of their own in a table of results, and the number of classes, which the data set.
_COLUMNS = (
    'model', 'model_kwargs', 'seed', 'epochs', 'batch_size', 'grad_accum_steps', 'amp', 'amp_dtype', 'torchcompile',
    'num_classes')
# What the args.yaml of a run, which is a recipe too, has beside the options.
_TOLD = ('machine', 'processes', 'global_batch', 'learning_rate', 'threads', 'python', 'torch', 'timm', 'commit')


def read_recipe(name: str) -> dict[str, Any]:
    """Options of a recipe; those of the ``args.yaml`` of a run have the run's own recipe as ``config``.

    Args:
        name: a YAML file, such as the ``args.yaml`` of a run, or the name of a packaged recipe.

    Raises:
        ValueError: there is no such recipe, it is not a mapping, or one of its keys is not an option.
    """
    packaged = RECIPES / f'{name.removesuffix(".yaml")}.yaml'
    file = Path(name) if Path(name).is_file() else packaged
    if not file.is_file():
        own = Path(name, 'args.yaml')
        if own.is_file():
            raise ValueError(f'{name!r} is the folder of a run; give {own}')
        raise ValueError(f'{name!r} is neither a file nor a packaged recipe; '
                         f'the packaged recipes are {", ".join(list_recipes())}')
    try:
        options = yaml.safe_load(file.read_text(encoding='utf-8')) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'the recipe {name} is not YAML in UTF-8: {error}') from error
    if not isinstance(options, dict):
        raise ValueError(f'the recipe {name} is not a mapping of options to values')
    options = {key: value for key, value in options.items() if key not in _TOLD}
    allowed = [action.dest for action in training_parser()._actions if action.dest != 'help']
    for key in options:
        if key not in allowed:
            close = get_close_matches(str(key), allowed, n=1)
            hint = f'did you mean {close[0]}?' if close else f'the options are {", ".join(allowed)}'
            raise ValueError(f'{key!r} in the recipe {name} is not an option; {hint}')
    return options


def parse_options(argv: Sequence[str] | None = None, command: str = 'timm-se train') -> argparse.Namespace:
    """Options of a training: from the command line, else from the recipe that ``--config`` names, else the defaults.

    The parser checks the recipe's options as it does those of the command line.

    Args:
        argv: the command line; that of this process if None.
        command: name of the command in messages.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument('--config')
    config = first.parse_known_args(given)[0].config
    recipe = read_recipe(config) if config else {}
    # The usage is short, since the options fill more than a screen.
    parser = argparse.ArgumentParser(prog=command, usage='%(prog)s [OPTIONS]', allow_abbrev=False)
    options = training_parser(parser).parse_args([*_as_arguments(recipe), *given])
    # The args.yaml of a run says which recipe the run had: this names its folder and its row of results.
    options.config = recipe.get('config', options.config)
    return options


def own_options(options: argparse.Namespace) -> str:
    """The network's keywords and the options that differ from the recipe's, such as ``attn='eca' lr=0.1``.

    Options that do not change what a run computes, or have a column of their own in its row of results, are left out.
    """
    try:
        recipe = vars(parse_options(['--config', options.config] if options.config else []))
    except ValueError:  # the recipe of a finished run may be gone; then the options differ from the defaults
        recipe = vars(parse_options([]))
    changed = {key: value for key, value in vars(options).items()
               if key not in (*RUNTIME, *_COLUMNS) and value != recipe.get(key)}
    kwargs = dict(options.model_kwargs)
    if options.input_size and kwargs.get('in_chans') == options.input_size[0]:  # a run's own args.yaml has both
        del kwargs['in_chans']
    parts = (*sorted(kwargs.items()), *sorted(changed.items()))
    return ' '.join(f'{key}={value!r}' for key, value in parts)


def options_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a checkpoint was trained with; an option that its release lacked has the value of its behaviour."""
    return {**vars(parse_options([])), **FORMER, **vars(checkpoint['args'])}


def run_columns(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that name the run of a checkpoint in tables of results, as in the run's own row."""
    options = argparse.Namespace(**options_of(checkpoint))
    position = {'world_size': 1, **checkpoint.get('position', {})}  # older checkpoints lack the batch or all of it
    return {
        'model': options.model, 'options': own_options(options), 'seed': options.seed,
        'epochs': checkpoint['epoch'] + 1, 'recipe': Path(options.config).stem if options.config else '',
        'data': data_name(options), 'global_batch': position.get(
            'global_batch', options.batch_size * options.grad_accum_steps * position['world_size'])}


def data_name(options: argparse.Namespace) -> str:
    """Name of the data in tables of results: that of timm's data set, or of the folder."""
    return options.dataset or Path(options.data_dir).resolve().name


def different_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Options that change what a run computes and differ from those of an earlier run, as ``lr=0.2 (was 0.1)``."""
    return [f'{key}={value!r} (was {then.get(key)!r})' for key, value in sorted(now.items())
            if key not in RUNTIME and not _is_same(_as_yaml(then.get(key)), _as_yaml(value))]


def _is_same(then: Any, now: Any) -> bool:
    """Whether two values are equal; numbers may differ by rounding, as fractions of ``--crop-pct`` do by release."""
    both_floats = isinstance(then, float) and isinstance(now, float)
    return math.isclose(then, now, rel_tol=1e-12) if both_floats else bool(then == now)


def _as_yaml(value: Any) -> Any:
    """`value` as ``args.yaml`` gives it back: with lists for tuples."""
    if isinstance(value, dict):
        return {key: _as_yaml(item) for key, item in value.items()}
    return [_as_yaml(item) for item in value] if isinstance(value, list | tuple) else value


def parse_evaluation(
        argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Options of an evaluation: from the command line, else those that the checkpoint was trained with, else defaults.

    Of a saved model, ``config.json`` says whether pictures are turned upright and have several labels.
    The device is never taken from the checkpoint, since a network trained on a GPU is evaluated on any machine.
    ``label_names`` of the result are the names of the checkpoint's classes; None where they are not known.
    ``model_config`` describes the network of a training that began with a saved model, and ``told_attention`` has the
    options of attention that the weights tell; both are None for others.

    Args:
        argv: the command line; that of this process if None.
        parser: of :func:`~timm_se_plugin.training.options.evaluation_parser`, if options were added to it.

    Raises:
        ValueError: there is no such checkpoint, or it is broken, of an unknown kind or without weights.
    """
    parser = parser or evaluation_parser()
    parser.set_defaults(label_names=None, model_config=None, told_attention=None)
    given = parser.parse_args(argv)
    checkpoint = given.checkpoint
    if checkpoint and not Path(checkpoint).is_file():
        inside = [path for name in (BEST, LAST) if (path := Path(checkpoint, name)).is_file()]
        hint = f'; it is the folder of a run: give {inside[0]}' if inside else ''
        runs = runs_in(Path(checkpoint))
        if runs and not inside:
            hint = f'; give a checkpoint of one of the runs in it, which are {", ".join(map(str, runs))}'
        raise ValueError(f'--checkpoint {checkpoint} is not a file{hint}')
    if checkpoint and not checkpoint.endswith(_WEIGHTS):
        raise ValueError(f'--checkpoint {checkpoint} is not a file of weights, whose name ends in '
                         f'{", ".join(_WEIGHTS)}')
    if checkpoint and checkpoint.endswith(_PICKLED):
        saved = read_weights(checkpoint)[1]
        trained, names = {**FORMER, **saved['args']} if 'args' in saved else {}, saved.get('label_names')
        # Not taken from the training: the machine, what the checkpoint replaces, and a class map where names are saved.
        others = {'output', 'pretrained', 'device', 'dist_backend', *(('class_map',) if names else ())}
        own = {action.dest for action in parser._actions} - others
        parser.set_defaults(label_names=names, told_attention=saved.get('attention'))
        parser.set_defaults(**{key: value for key, value in trained.items() if key in own and value is not None})
        if 'model' in trained:
            asked, kept = parser.parse_args(argv).model, saved.get('model_config')
            began = {'model': asked} if asked.startswith(SAVED_AT) else {}  # the saved model may have been moved there
            parser.set_defaults(model_config=kept if asked == trained['model'] else None,
                                model_kwargs=model_kwargs({**trained, **began}, kept))
    elif given.model.startswith(SAVED_AT) and not checkpoint:
        check_model(given.model, given.model_kwargs)
        said = read_config_json(given.model)
        parser.set_defaults(exif_orientation=said.get('upright', True))
        if said.get('problem_type') == MULTILABEL:
            parser.set_defaults(task='multilabel')
    return parser.parse_args(argv)


def _as_arguments(options: dict[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        flag = key.replace('_', '-')
        if value is None:
            continue
        if isinstance(value, bool):
            yield f'--{flag}' if value else f'--no-{flag}'
        elif isinstance(value, dict):
            yield from (f'--{flag}', *(f'{k}={v!r}' for k, v in value.items()))
        elif isinstance(value, list):
            yield from (f'--{flag}', *map(str, value))
        else:
            yield f'--{flag}={value}'
