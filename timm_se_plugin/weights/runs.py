"""The result of a training run: the model with its weights, and the options and results of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from timm.data import resolve_data_config
from timm.models import PretrainedCfg
from torch import nn

from ..files.hub_files import BEST, LAST, SAVED_AT, read_config_json
from ..files.tables import read_table
from ..models._registry import architectures
from ..models._resolution import SAVED_SOURCES, resolve
from ..models.names import create_network
from ..models.state_dicts import Misfit
from ..placement.record import check_attention_of_weights, record_origin
from ..placement.spec import applicable, split_attention_kwargs
from ..placement.structure import image_size
from .facts import Facts
from .folders import named_by_number
from .reading import read_weights

__all__ = [
    'FORMER', 'MULTILABEL', 'TrainedClassifier', 'build_model', 'channel_kwargs', 'data_config', 'described_run',
    'model_kwargs', 'names_of_all', 'own_arguments', 'read_run']

# Entry `problem_type` of a config.json, by transformers' name, where a picture has any number of labels.
MULTILABEL = 'multi_label_classification'
# Values of options that runs of earlier releases and of timm's own trainer lack: these describe what such runs do.
FORMER = {'exif_orientation': False}
# The options, by timm's names, that a model card repeats as the recipe.
_RECIPE = (
    'epochs', 'batch_size', 'grad_accum_steps', 'opt', 'lr', 'lr_base', 'lr_base_size', 'sched', 'warmup_epochs',
    'weight_decay', 'momentum', 'smoothing', 'mixup', 'cutmix', 'aa', 'reprob', 'drop_path', 'model_ema', 'amp', 'seed')


class TrainedClassifier(NamedTuple):
    """A trained classifier.

    Args:
        model: the model with its weights.
        data_config: the preprocessing, as timm's data configuration.
        facts: facts about the training, for a model card.
        model_config: what a ``config.json`` says of the classes and pictures, as :func:`described_run` returns it.
    """

    model: nn.Module
    data_config: dict[str, Any]
    facts: Facts
    model_config: dict[str, Any]

    @property
    def label_names(self) -> list[str] | None:
        """Names of the classes; None if the run does not tell."""
        return self.model_config.get('label_names')


def read_run(folder: str | Path) -> TrainedClassifier | None:
    """Read the folder of a run of this package's trainer or timm's train.py.

    The weights are those of the best checkpoint, or of the last one if there is no best. If the checkpoint has averaged
    weights, these are read, since the run measured their accuracy. The result has no paths of the training machine.

    Returns:
        The trained classifier; None if the folder has no checkpoint of a run.

    Raises:
        FileNotFoundError: the saved model that the training began with is not there.
        ValueError: the checkpoint is broken, does not say which model it belongs to, or is of another network than it
            says.
    """
    paths = [path for name in (BEST, LAST) if (path := Path(folder, name)).is_file()]
    if not paths:
        return None
    weights, said = read_weights(paths[0])
    args = said.get('args') or {}
    if 'model' not in args:
        raise ValueError(f"{paths[0]} does not say which model it belongs to; timm's checkpoints say so in args")
    try:
        model = build_model(args, said.get('model_config'))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{paths[0]} is of a training that began with {args['model']}, whose config.json describes the network and "
            f'cannot be read: {error}; a folder has to lie where the training found it') from error
    misfit = Misfit.of(weights, model.state_dict())
    if misfit:
        raise ValueError(f"{paths[0]} does not fit {args['model']}, which it says it belongs to: {misfit}")
    check_attention_of_weights(model, said.get('attention'))
    model.load_state_dict(weights)
    record_origin(model, published=bool(args.get('pretrained')))
    facts = _facts(args, Path(folder, 'summary.csv'), said.get('epoch'))
    return TrainedClassifier(
        model, data_config(args, model), facts, described_run(args, said.get('label_names'), model))


def described_run(args: Mapping[str, Any], names: Any, model: Any) -> dict[str, Any]:
    """What a ``config.json`` says of the classes, and of pictures that are read as they are stored.

    Args:
        args: options of the run, as for :func:`build_model`; empty for weights of no run.
        names: the data's names of classes, as for :func:`names_of_all`.
        model: the network.
    """
    args, names = {**FORMER, **args} if args else {}, names_of_all(names, model)
    return {**({'label_names': names} if names else {}),
            **({'problem_type': MULTILABEL} if args.get('task') == 'multilabel' else {}),
            **({} if args.get('exif_orientation', True) else {'upright': False})}


def names_of_all(names: Any, model: Any) -> list[str] | None:
    """The data's names of classes, and numbers for the further classes of a model, as ``--num-classes`` gives it some.

    The result is None where `names` is no list or has more names than the model has classes.
    """
    if not isinstance(names, list) or len(names) > model.num_classes:
        return None
    return named_by_number(dict(enumerate(names)), model.num_classes)


def build_model(args: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> nn.Module:
    """The network that a run trained, without its weights.

    Args:
        args: options of the run, by the names of this package's trainer and timm's train.py.
        kept: entry ``model_config`` of the checkpoint, which describes the network of a run that began with a saved
            model.

    Raises:
        ValueError: neither timm nor the plugin has such a model.
    """
    kwargs = model_kwargs(args, kept)
    if args.get('num_classes') is not None:
        kwargs.setdefault('num_classes', args['num_classes'])
    return create_network(args['model'], kept, **kwargs)


def data_config(args: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """timm's data configuration of a model, in which the options of a run replace the model's own values.

    The number of channels is the model's, and so is the image size of a network for one size where the options have
    none. A mean or deviation for another number of channels is averaged, as in timm's loader.

    Args:
        args: options of the run, as for :func:`build_model`.
        model: the network that the run trains.

    Raises:
        ValueError: an image size, means or standard deviations for another number of channels.
    """
    size = args.get('input_size')
    channels = int(getattr(model, 'in_chans', None) or (args.get('model_kwargs') or {}).get('in_chans')
                   or model.pretrained_cfg['input_size'][0])
    if size and size[0] != channels:
        raise ValueError(f'--input-size {" ".join(map(str, size))} has {size[0]} channels and the network takes '
                         f'{channels}; --model-kwargs in_chans={size[0]} changes the network')
    for name in ('mean', 'std'):
        given = args.get(name)
        if given is not None and len(given) not in (1, channels):
            numbers = ' '.join(map(str, given))
            raise ValueError(f'--{name} {numbers} needs one number, or one for each of the {channels} channels')
    config = resolve_data_config({**args, 'in_chans': channels}, model=model)
    # timm takes the size of the weights, even if the network was made for another one by img_size.
    of_model = model.pretrained_cfg.get('fixed_input_size') and not (size or args.get('img_size'))
    config['input_size'] = (channels, *(image_size(model) if of_model else config['input_size'])[1:])
    for name in ('mean', 'std'):
        if len(config[name]) != channels:
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


def channel_kwargs(args: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model_kwargs`` of a run, with ``in_chans`` where its image size has another number of channels than 3.

    The options ``--gp``, ``--bn-eps`` and ``--bn-momentum`` of timm's train.py, which change the network too, are among
    them.

    Args:
        args: options of the run, as for :func:`build_model`.
    """
    size = args.get('input_size') or (3,)
    channels = args.get('in_chans') or (size[0] if size[0] != 3 else None)
    given = {'in_chans': channels, 'global_pool': args.get('gp'), 'bn_eps': args.get('bn_eps'),
             'bn_momentum': args.get('bn_momentum')}
    return {**{key: value for key, value in given.items() if value}, **(args.get('model_kwargs') or {})}


def model_kwargs(args: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``model_kwargs`` that build the network of a run again without loading weights.

    Args:
        args: options of the run, as for :func:`build_model`.
        kept: as for :func:`build_model`; where it is given, the options of attention are those that it has.
    """
    kwargs = channel_kwargs(args)
    if kept:
        own = applicable(split_attention_kwargs(dict(kept.get('model_args', {}))))
        return {**kwargs, **own} if own.get('attn', 'none') != 'none' else kwargs
    if not args.get('pretrained'):
        return kwargs
    if args['model'].startswith(SAVED_AT):
        return _gained(args['model'], kwargs)
    name, _, tag = args['model'].partition('.')
    arch = architectures.get(name)
    if arch is not None:  # the tag's weights have decided on the attention
        options = split_attention_kwargs(kwargs)
        attn, _ = resolve(arch, options, tag or None)
        kwargs.update(attn.to_kwargs() if attn else options)
    return kwargs


def _gained(place: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """`kwargs` with every option of the attention that a run added to the saved model at `place`.

    If the saved model's config.json cannot be read, `kwargs` are returned unchanged. Building the network then reports
    the missing file, and an evaluation of the checkpoint in another network, by ``--model``, does not need it.
    """
    options = split_attention_kwargs(dict(kwargs))
    try:
        said = read_config_json(place) if 'attn' in options else {}
    except OSError:
        return kwargs
    arch = architectures.get(said.get('architecture', ''))
    if arch is None:
        return kwargs
    cfg = PretrainedCfg(source=SAVED_SOURCES[0], architecture=arch.name)
    attn, gained = resolve(arch, options, cfg, said.get('model_args'))
    return {**kwargs, **attn.to_kwargs()} if attn and gained else kwargs


def own_arguments(said: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network for a run's weights: the run's own for the name that it trained, and those `given`.

    Args:
        said: the checkpoint's metadata, as :func:`~.reading.read_weights` returns it.
        name: name of the network.
        given: arguments that replace the run's; with an ``attn``, none of the run's arguments are used.
    """
    args, kept = said.get('args') or {}, said.get('model_config') or {}
    if 'attn' in given:
        return dict(given)
    if kept.get('architecture') == name:
        return {**kept.get('model_args', {}), **given}
    return {**model_kwargs(args), **given} if str(args.get('model')).partition('.')[0] == name else dict(given)


def _facts(args: Mapping[str, Any], summary: Path, epoch: int | None) -> Facts:
    data = args.get('dataset') or Path(args.get('data_dir') or '').name
    args = {**args, 'lr_base': None, 'lr_base_size': None} if args.get('lr') else args
    recipe = ', '.join(f'{name} {args[name]}' for name in _RECIPE
                       if args.get(name) or (name == 'seed' and args.get(name) is not None))
    if args.get('config'):
        recipe = f"`{Path(args['config']).stem}`: {recipe}"
    rows = [row for row in read_table(summary) if row.get('epoch') == str(epoch)]
    results = {**rows[-1], 'epoch': f'{int(epoch or 0) + 1} of {args["epochs"]}' if 'epochs' in args else
               str(int(epoch or 0) + 1)} if rows else None
    return Facts(data=data or None, recipe=recipe or None, results=results,
                 results_file=summary.name if rows else None)
