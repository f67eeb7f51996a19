"""The type of options whose value is a score."""

import argparse

__all__ = ['score']


def score(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a score, which is a number from 0 to 1')
    return value
