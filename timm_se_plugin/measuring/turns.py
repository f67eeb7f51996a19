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
        device: the device that the steps compute on; a clock is read only when a GPU has computed everything.
        report: called after each turn with its number, which is 1 or more for measured turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    accelerator = torch.accelerator.current_accelerator()      # CUDA, MPS, XPU, ...; None on a CPU
    is_asynchronous = device is not None and accelerator is not None and device.type == accelerator.type
    for turn in range(1 - warmup, rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if is_asynchronous:
                torch.accelerator.synchronize(device)
            start = time.perf_counter()
            steps[name]()
            if is_asynchronous:
                torch.accelerator.synchronize(device)
            if turn >= 1:
                seconds[name].append(time.perf_counter() - start)
        report(turn)
    return seconds
