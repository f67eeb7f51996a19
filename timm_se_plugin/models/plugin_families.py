"""Names for timm's networks other than ResNets, by the table of placement/families.py.

``<base>_plugin`` is timm's network, with the ``attn`` flag open; ``se_<base>_plugin`` carries SE in the places that its
family's literature uses.
"""

import re
from fnmatch import translate

import timm
from timm.models import DefaultCfg

from ..placement import AttentionSpec
from ..placement.families import FAMILIES
from ._builder import Architecture
from ._published import Source, published_cfgs, with_warm_starts, without_weights
from ._registry import register

__all__: list[str] = []  # the entrypoints; timm's register_model adds them
default_cfgs: dict[str, DefaultCfg] = {}  # where register_model looks for the pretrained configurations


def _register_all() -> None:
    theirs = [name for name in timm.list_models(include_tags=False) if not name.endswith('_plugin')]
    for family in FAMILIES.values():
        model_args = {'feature_cfg': family.feature_cfg} if family.feature_cfg else {}
        is_base = re.compile('|'.join(map(translate, family.bases)) or '(?!)').match
        for base in filter(is_base, theirs):
            source = Source(base, None)
            cfgs = published_cfgs(source)
            register(
                __name__, Architecture(f'{base}_plugin', base, None, source=source, model_cls=None,
                                       model_args=model_args),
                cfgs, f"timm's {base}; attention by the attn flag.")
            register(
                __name__, Architecture(
                    f'se_{base}_plugin', base, AttentionSpec('se'), flag_is_open=False, plain_source=source,
                    model_cls=None, model_args=model_args),
                with_warm_starts(without_weights(cfgs.default), cfgs), f"timm's {base} with attention: se.")


_register_all()
