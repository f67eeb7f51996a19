"""A check of timm's version, before the other modules of this package import names that an older timm lacks."""

import timm
from packaging.version import Version

_FLOOR = '1.0.31'  # the first release with timm.task.ClassificationEvaluator and ClassificationTask(criterion_kwargs=)


if Version(timm.__version__).release < Version(_FLOOR).release:
    raise ImportError(
        f'timm_se_plugin.training needs timm {_FLOOR} or later, and timm {timm.__version__} is installed; '
        f'pip install --upgrade "timm>={_FLOOR}" installs a newer one')
