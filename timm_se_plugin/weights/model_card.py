"""The text that goes to the Hub with a model: what is known about it, and nothing else."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..files.hub_files import hub_name
from ..files.version import __version__
from ..measuring.complexity import complexity
from ..placement import AttentionSpec

__all__ = ['Facts', 'classifier_card', 'model_card']

_TEMPLATE = Path(__file__).with_name('model_card.md')


@dataclass(frozen=True)
class Facts:
    """What a network does not know about its own weights; whatever is not given is not mentioned.

    Args:
        license: an identifier of the Hub, such as ``'apache-2.0'``.
        data: what it was trained on.
        recipe: how.
        results: measured, a column of a CSV file to each name.
        results_file: name of that file.
    """

    license: str | None = None
    data: str | None = None
    recipe: str | None = None
    results: Mapping[str, Any] | None = None
    results_file: str | None = None


def csv_row(path: str | Path, row: int | None = None) -> dict[str, str]:
    """One row of a CSV file with a header.

    Args:
        path: the file.
        row: which, from 1 (below the header), or from -1 backwards; may be left out if there is only one.

    Raises:
        ValueError: no such row, or a choice of several.
    """
    with open(path, newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f'{path} has no row below its header')
    if row is None and len(rows) == 1:
        row = 1
    if row is None or not 1 <= abs(row) <= len(rows):
        raise ValueError(f'row {row} of {path} is not allowed; allowed: 1 to {len(rows)}, or -1 to -{len(rows)}')
    return rows[row - 1 if row > 0 else row]


def model_card(
        lead: str, title: str, usage: str, rows: Iterable[Sequence[Any]], facts: Facts, **metadata: Any,
) -> str:
    """Text of a model card, with the Hub's metadata.

    Args:
        lead: the first lines.
        title: the heading.
        usage: Python code that loads the model.
        rows: name and value of what the model itself tells; rows without value are left out.
        facts: what it does not tell.
        **metadata: as for ``huggingface_hub.ModelCardData``.
    """
    card = ModelCard.from_template(
        ModelCardData(license=facts.license, **metadata), template_path=str(_TEMPLATE),
        lead=lead, title=title, usage=usage, facts=facts, rows=[row for row in rows if row[1] not in (None, '')])
    return f'{str(card).strip()}\n'


def classifier_card(model: nn.Module, repo_id: str, facts: Facts, revision: str | None = None) -> str:
    """Card of a timm model."""
    network: Any = model
    cfg = network.pretrained_cfg
    architecture = cfg['architecture']
    attn = AttentionSpec.of(model)
    cost = complexity(model)
    size = 'x'.join(map(str, cost.input_size))
    is_ours = architecture.endswith('_plugin')
    name = hub_name(repo_id, revision)
    imports = f'import timm_se_plugin  # registers {architecture}\n' if is_ours else ''
    return model_card(
        lead=f'**`import timm_se_plugin` first** (the package `timm-se-plugin`, {__version__} or newer): without that '
             f'import timm answers `Unknown model ({architecture})`.' if is_ours else 'A model of timm.',
        title=repo_id.rpartition('/')[2],
        usage=f"""import timm
{imports}model = timm.create_model('{name}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
probabilities = model(transform(image)[None]).softmax(-1)  # image: a PIL image""",
        rows=(
            ('Architecture', f'`{architecture}`'),
            ('Attention', attn and ', '.join(f'`{key}={value!r}`' for key, value in attn.to_kwargs().items())),
            ('Classes', network.num_classes or None),
            ('Parameters', f'{cost.params:,}' + (f', {cost.attention_params:,} of them attention' if attn else '')),
            ('MACs', f'{cost.macs:,} for an input of {size}' + (f', {cost.attention_macs:,} of them attention'
                                                                if attn else '')),
            ('Saved with', f'timm_se_plugin {__version__}, timm {timm.__version__}'),
        ),
        facts=facts,
        library_name='timm',
        pipeline_tag='image-classification' if network.num_classes else 'image-feature-extraction',
        tags=['timm', *(('timm_se_plugin',) if is_ours else ()), *(_TAGS.get(attn.attn, ()) if attn else ())])


_TAGS = {'se': ('squeeze-and-excitation',), 'sk': ('selective-kernel',),
         'sk+se': ('selective-kernel', 'squeeze-and-excitation')}
