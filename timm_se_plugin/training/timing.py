"""Time of a training step of a network with attention, relative to the same network without attention."""

import re
import statistics
import time

import timm
import torch
from torch import nn
from torch.nn import functional as F

from .run import Run

__all__ = ['plain_name', 'step_time_ratio']


def plain_name(model: str) -> str | None:
    """Name of the plugin's network without the attention that `model` names; None where `model` names none.

    Args:
        model: a name, with a tag or without: ``se_resnet50_plugin.tv_in1k`` gives ``resnet50_plugin``.
    """
    match = re.fullmatch(r'(?:se|sk)_(\w+_plugin)(?:\..+)?', model)
    return match[1] if match and timm.is_model(match[1]) else None


def step_time_ratio(run: Run, rounds: int = 15) -> float | None:
    """Time of a training step of the run's network by that of its plain network: the median over pairs of steps.

    Both networks are new, and train as the run does, on one of its batches.

    Args:
        run: gives the network, the data and the options.
        rounds: number of pairs.

    Returns:
        The ratio; None for a network without attention, or whose name of another package brings it.
    """
    kwargs = run.options.model_kwargs
    flagged = run.options.model if kwargs.get('attn', 'none') != 'none' else None
    plain = plain_name(run.options.model) or flagged
    if plain is None:
        return None
    without = {key: value for key, value in kwargs.items() if not key.startswith('attn')}
    with torch.random.fork_rng():
        models = [run.create_model(name, keywords, pretrained=False).train()
                  for name, keywords in ((plain, without), (run.options.model, kwargs))]
    if run.options.torchcompile:
        for model in models:
            model.compile(backend=run.options.torchcompile)
    x, y = next(iter(run.train_loader(0)))
    y = y if y.ndim == 1 else y.argmax(1)

    def seconds(model: nn.Module) -> float:
        start = time.perf_counter()
        with run.autocast():
            loss = F.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    ratios = []
    for turn in range(rounds + 3):
        first = turn % 2
        times = [0.0, 0.0]
        for which in (first, 1 - first):  # each goes first in every other pair
            times[which] = seconds(models[which])
        if turn >= 3:
            ratios.append(times[1] / times[0])
    return statistics.median(ratios)
