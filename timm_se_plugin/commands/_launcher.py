"""The entry point of ``timm-se``, which reads the command line before PyTorch is imported.

``import timm_se_plugin`` imports timm to register the models, which takes seconds. ``timm-se --help`` and a misspelt
option need not wait for that: while the command line is read, the packages below are modules whose ``__init__`` has not
run. Afterwards they are removed from ``sys.modules``, and imported as usual.

An import of ``timm_se_plugin.commands`` would begin with the package itself, so a wheel has a copy of this file at its
top level, as ``timm_se.py``.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['main']

# Packages with modules that define the options of commands; each comes before the packages inside.
_PACKAGES = ('timm_se_plugin', 'timm_se_plugin.analysis', 'timm_se_plugin.files', 'timm_se_plugin.training')


@contextmanager
def _without_init() -> Iterator[None]:
    if 'timm_se_plugin' in sys.modules:  # the seconds have been spent
        yield
        return
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition('.')[0] == 'timm_se_plugin']:
            del sys.modules[name]


def main() -> None:
    """Read the command line, and run the command."""
    with _without_init():
        from timm_se_plugin.commands import parse
        args = parse()
    from timm_se_plugin.commands import run
    run(args)
