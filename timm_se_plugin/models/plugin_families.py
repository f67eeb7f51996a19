"""Names for timm's networks other than ResNets, by the table of placement/families.py.

``<base>_plugin`` is timm's network, which accepts ``attn=``; ``se_<base>_plugin`` carries SE in the places that its
family's literature uses.
"""

import fnmatch
import sys
import warnings
from typing import Any

import timm
from timm.models import DefaultCfg

from ..placement import AttentionSpec
from ..placement.families import FAMILIES
from ._architecture import timm_network
from ._published import Source, published_cfgs
from ._registry import register_variants

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations


def _register_all() -> None:
    names = [name for name in timm.list_models(include_tags=False) if not name.endswith('_plugin')]
    for family in FAMILIES.values():
        bases = [name for pattern in family.bases for name in fnmatch.filter(names, pattern)]
        missing = family.missing_classes()
        if bases and missing:
            warnings.warn(f'timm {timm.__version__} has no {", ".join(missing)}: timm_se_plugin leaves out the names '
                          f'{bases[0]}_plugin and others of the family', stacklevel=2)
            continue
        module, _, function = family.checkpoint_filter.rpartition('.')
        common: dict[str, Any] = {
            'feature_cfg': family.feature_cfg,
            'checkpoint_filter': getattr(sys.modules[module], function) if function else None}
        for base in bases:
            source = Source(base, None)
            register_variants(
                __name__, base, timm_network(base), (AttentionSpec('se'),), published_cfgs(source), source, **common)


_register_all()
