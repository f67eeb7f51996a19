"""The device that a command is told to compute on."""

import torch

__all__ = ['check_device']


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
