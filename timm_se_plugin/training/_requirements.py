"""Checks of what is installed: of timm's version, before the other modules import names that an older timm lacks."""

import importlib
import re

import timm

_FLOOR = '1.0.31'  # the first release with timm.task.ClassificationEvaluator and ClassificationTask(criterion_kwargs=)


def check_packages(*names: str) -> None:
    """Import packages that are needed after hours of work, so that the absence of one is known before.

    Raises:
        ModuleNotFoundError: a package is not installed.
    """
    for name in names:
        importlib.import_module(name)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', version)[:3]]


if _numbers(timm.__version__) < _numbers(_FLOOR):
    raise ImportError(
        f'timm_se_plugin.training needs timm {_FLOOR} or later, and timm {timm.__version__} is installed; '
        f'pip install --upgrade "timm>={_FLOOR}" installs a newer one')
