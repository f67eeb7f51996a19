"""A check that packages of an extra are installed, before the work that needs them."""

import importlib

__all__ = ['require']


def require(extra: str, *packages: str) -> None:
    """Import packages that an extra of this package brings.

    Args:
        extra: name of the extra.
        packages: the packages, by the names that are imported.

    Raises:
        ModuleNotFoundError: one is not installed; the message says how to install it.
    """
    for name in packages:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f'{error.name} is not installed; the extra {extra} brings it: `pip install '
                                      f'"timm-se-plugin[{extra}]"`', name=error.name) from error
