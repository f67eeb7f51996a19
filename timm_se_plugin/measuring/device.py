"""The device that a command is told to compute on."""

import torch

__all__ = ['check_device']


def check_device(device: str) -> None:
    """Raise ValueError for a name that is no device of torch, and for CUDA where torch finds none."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f'--device {device} is not a device of torch, such as cpu or cuda:1') from error
    if kind == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f'--device {device} needs CUDA, and torch finds no CUDA device here; --device cpu works')
