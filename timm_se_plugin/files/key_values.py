"""An option of a command that takes ``KEY=VALUE`` pairs."""

import argparse
from typing import Any

__all__ = ['KeyValues']


class KeyValues(argparse.Action):
    """timm's ``ParseKwargs``, which is imported only when such an option is given, so that ``--help`` is quick."""

    def __call__(self, *given: Any, **named: Any) -> None:  # noqa: D102
        from timm.utils import ParseKwargs
        ParseKwargs.__call__(self, *given, **named)
