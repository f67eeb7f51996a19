"""The device that a command is told to compute on, and the name of the CPU."""

import platform

import torch

__all__ = ['check_device', 'processor']


def check_device(device: str) -> None:
    """Raise ValueError for a name that is no device of torch, and for CUDA's where torch finds no such device."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError as error:
        raise ValueError(f'--device {device} is not a device of torch, such as cpu or cuda:1') from error
    if kind == 'meta':
        raise ValueError('--device meta computes nothing; give cpu or cuda')
    if kind == 'cuda' and 0 < torch.cuda.device_count() <= index:
        raise ValueError(f'--device {device} is not here: torch finds {torch.cuda.device_count()} CUDA devices, whose '
                         'numbers begin with 0')
    if kind == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'--device {device} needs CUDA, and torch finds no CUDA device here; --device cpu works')


def processor() -> str:
    """The CPU's architecture and the vector instructions that PyTorch computes with, such as ``'x86_64 AVX512'``.

    Times that were measured with different instructions are not comparable: the quicker the CPU computes, the more
    of a step is spent on what it moves in memory.
    """
    return f'{platform.machine()} {torch.backends.cpu.get_cpu_capability()}'
