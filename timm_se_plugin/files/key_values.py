"""An option of a command that takes ``KEY=VALUE`` pairs."""

import argparse
from typing import Any

__all__ = ['KeyValues']


class KeyValues(argparse.Action):
    """timm's ``ParseKwargs``, which is imported only when such an option is given, so that ``--help`` is quick."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:  # noqa: D102
        bare = [value for value in values if value and '=' not in value]
        if bare:
            parser.error(f'argument {option}: {bare[0]!r} is not of the form {self.metavar}')
        from timm.utils import ParseKwargs
        ParseKwargs.__call__(self, parser, namespace, values, option)
