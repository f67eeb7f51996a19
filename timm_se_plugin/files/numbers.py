"""Numbers on a command line, as types of argparse: a number that is not allowed is named with what is needed."""

import argparse
from collections.abc import Callable
from typing import Any

__all__ = ['count', 'number', 'share']


def number(kind: Callable[[str], Any], test: Callable[[Any], bool], what: str) -> Callable[[str], Any]:
    """A type of argparse.

    Args:
        kind: makes the number of its text; a ValueError or ZeroDivisionError refuses the text.
        test: whether the number is allowed.
        what: what the message says is needed, such as 'a positive integer'.
    """
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except (ValueError, ZeroDivisionError):
            value = None
        if value is None or not test(value):
            raise argparse.ArgumentTypeError(f'{text!r} is not {what}')
        return value
    return convert


count = number(int, lambda n: n >= 1, 'a positive integer')
share = number(float, lambda x: 0 <= x <= 1, 'a number from 0 to 1')
