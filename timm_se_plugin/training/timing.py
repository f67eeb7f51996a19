"""Time of a training step of a network with attention, relative to the same network without attention."""

import logging
import statistics
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ..measuring.turns import time_in_turns
from ..placement.record import OPEN_NAMES
from .run import Run

__all__ = ['plain_name', 'step_time_ratio']

_logger = logging.getLogger(__name__)


def plain_name(model: str) -> str | None:
    """Name of the network without the attention that a name of the plugin begins with; None for other names.

    Args:
        model: a name, with a tag or without: ``se_resnet50_plugin.tv_in1k`` gives ``resnet50_plugin``.
    """
    name = model.partition('.')[0]
    opened = OPEN_NAMES.get(name)
    return opened if opened != name else None


def step_time_ratio(run: Run, rounds: int = 15) -> float | None:
    """Time of a training step of the run's network, divided by that of its plain network: the median of paired steps.

    Both networks are new, and train as the run does, on one of the run's batches.

    Args:
        run: the run whose network, data and options are used.
        rounds: number of pairs.

    Returns:
        The ratio; None for a network without attention, or whose attention is part of timm's own network, as in
        ``seresnet50``, or was pruned together with the network.
    """
    name, kwargs, kept = run.options.model, run.options.model_kwargs, run.model_config
    plain = plain_name(name) or (name if kwargs.get('attn', 'none') != 'none' else None)
    if plain is None or (kept and 'pruned_widths' in kept['model_args']):
        return None
    _logger.info('the time of a training step is compared with that of %s', plain)
    # A network such as seresnet50_plugin carries attention by itself, and a saved model may have been moved.
    without = {**{key: value for key, value in kwargs.items() if not key.startswith('attn')}, 'attn': 'none'}
    opened = kept and {**kept, 'architecture': OPEN_NAMES[kept['architecture']]}
    with torch.random.fork_rng(devices=()):  # networks are made on the CPU
        models = {'plain': run.create_model(plain, without, False, opened),
                  'own': run.create_model(name, kwargs, False, kept)}
    for model in models.values():
        model.train()
        if run.options.torchcompile:
            model.compile(backend=run.options.torchcompile)
    x, y = next(iter(run.train_loader(0)))
    y = y if y.ndim == 1 else y.argmax(1)

    def step(model: nn.Module) -> None:
        with run.autocast():
            loss = F.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()

    seconds = time_in_turns(
        {which: partial(step, model) for which, model in models.items()}, rounds, warmup=3, device=x.device)
    return statistics.median(own / other for own, other in zip(seconds['own'], seconds['plain'], strict=True))
