"""The time of several steps, measured in turns, so that a slow moment of the machine affects all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ['time_in_turns']


def time_in_turns(
        steps: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2, device: torch.device | None = None,
        report: Callable[[int], object] = lambda turn: None,
) -> dict[str, list[float]]:
    """Seconds that each step takes in each turn after the warm-up.

    Args:
        steps: what is measured, by name. Each of them goes first in turn, so that none always finds caches that
            another one has warmed.
        rounds: number of measured turns.
        warmup: number of turns before them.
        device: the device that the steps compute on; a clock is read only when CUDA has computed everything.
        report: called after each turn with its number, which is 1 or more for measured turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    is_cuda = device is not None and device.type == 'cuda'
    for turn in range(1 - warmup, rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if is_cuda:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            steps[name]()
            if is_cuda:
                torch.cuda.synchronize(device)
            if turn >= 1:
                seconds[name].append(time.perf_counter() - start)
        report(turn)
    return seconds
