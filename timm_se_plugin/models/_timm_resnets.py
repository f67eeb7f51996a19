"""The attention of the networks in timm's ``resnet`` module, known without building them.

``tools/update_timm_resnets.py`` writes ``timm_resnets.json`` from the networks themselves; a test fails when the
installed timm builds something else.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.layers import EcaModule, SEModule
from timm.models.resnet import ResNet
from torch import nn

from ..placement import AttentionSpec
from ..placement.surgery import vacate_blocks

__all__ = ['TimmResNet', 'observed', 'timm_resnets', 'write_table']

_TABLE = Path(__file__).with_name('timm_resnets.json')


class TimmResNet(NamedTuple):
    """One network of timm's.

    Args:
        attn: the attention that it carries; None for none.
        plain: timm's name of the same network without attention; empty if there is none.
        is_pruned: whether timm pruned the network together with its attention.
    """

    attn: AttentionSpec | None
    plain: str = ''
    is_pruned: bool = False


def timm_resnets() -> dict[str, TimmResNet]:
    """Networks of the table that the installed timm has, by name."""
    table = json.loads(_TABLE.read_text(encoding='utf-8'))
    return {
        name: TimmResNet(AttentionSpec.from_kwargs(row['attn']) if 'attn' in row else None, row.get('plain', ''),
                         row.get('is_pruned', False))
        for name, row in table.items() if timm.is_model(name)}


def observed() -> dict[str, TimmResNet]:
    """The table, read from the networks that the installed timm builds on the meta device."""
    names = [name for name in timm.list_models(module='resnet', include_tags=False)
             if timm.models.model_entrypoint(name).__module__ == ResNet.__module__]
    models = {name: timm.create_model(name, device='meta') for name in names}
    carried = {name: _carried(model) for name, model in models.items()}
    pruned = {name: _is_pruned(model) for name, model in models.items()}
    for model in models.values():
        vacate_blocks(model)
    structures = {str(model): name for name, model in models.items() if carried[name] is None}
    return {name: TimmResNet(attn, structures.get(str(models[name]), '') if attn else '', pruned[name])
            for name, attn in carried.items()}


def write_table() -> None:
    """Write the result of :func:`observed` into ``timm_resnets.json``."""
    rows: dict[str, dict[str, Any]] = {}
    for name, found in sorted(observed().items()):
        attn = found.attn and {key: value for key, value in found.attn.to_kwargs().items()
                               if value != AttentionSpec(found.attn.attn).to_kwargs()[key] or key == 'attn'}
        row = {'attn': attn, 'plain': found.plain, 'is_pruned': found.is_pruned}
        rows[name] = {key: value for key, value in row.items() if value}
    lines = [f'{json.dumps(name)}: {json.dumps(row)}' for name, row in rows.items()]
    _TABLE.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')


def _carried(model: nn.Module) -> AttentionSpec | None:
    """The attention of a network as a specification."""
    layers: list[Any] = [module.se for module in model.modules() if getattr(module, 'se', None) is not None]
    kinds = Counter(type(layer) for layer in layers)
    if not layers:
        return None
    if set(kinds) == {EcaModule}:
        return AttentionSpec('eca')
    if set(kinds) == {SEModule}:
        for rd_ratio in (1 / 16, 1 / 8, 1 / 4):
            attn = AttentionSpec('se', rd_ratio=rd_ratio, rd_divisor=8)
            created = [attn.create(layer.fc1.in_channels, device='meta') for layer in layers]
            if all(new.get_parameter('fc1.weight').shape == layer.fc1.weight.shape
                   for new, layer in zip(created, layers, strict=True)):
                return attn
    raise ValueError(f'{type(model).__name__} carries {", ".join(kind.__name__ for kind in kinds)}, which no '
                     'specification of the plugin describes')


def _is_pruned(model: Any) -> bool:
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    return any(len({block.conv2.out_channels for block in stage}) > 1 for stage in stages)
