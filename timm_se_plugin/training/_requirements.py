"""A check of timm's version, before the other modules of this package import names that an older timm lacks."""

import re

import timm

_FLOOR = '1.0.31'  # the first release with timm.task.ClassificationEvaluator and ClassificationTask(criterion_kwargs=)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', version)[:3]]


if _numbers(timm.__version__) < _numbers(_FLOOR):
    raise ImportError(
        f'timm_se_plugin.training needs timm {_FLOOR} or later, and timm {timm.__version__} is installed; '
        f'pip install --upgrade "timm>={_FLOOR}" installs a newer one')
