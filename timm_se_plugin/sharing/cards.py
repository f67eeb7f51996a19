"""Model cards, from what the model itself tells and what its owner states."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..files.hub_files import hub_name
from ..files.version import __version__
from ..measuring.complexity import complexity
from ..models._registry import architectures
from ..placement import AttentionSpec
from ..weights.facts import Facts
from ..weights.folders import saved_class_names

__all__ = ['classifier_card', 'detector_card']

_TEMPLATE = Path(__file__).with_name('model_card.md')


def classifier_card(
        model: nn.Module, repo_id: str, facts: Facts, revision: str | None = None, is_multilabel: bool = False) -> str:
    """Card of a timm model, in Markdown with the Hub's metadata at its head.

    Args:
        model: the model.
        repo_id: the repository that the card is for, ``'user/repo'``.
        facts: what the model itself cannot tell.
        revision: the branch that the card is for; ``main`` if None.
        is_multilabel: whether a picture has any number of the classes, instead of one.
    """
    network: Any = model
    architecture = network.pretrained_cfg['architecture']
    attn, names = AttentionSpec.of(model), saved_class_names(network)
    cost = complexity(model)
    size = 'x'.join(map(str, cost.input_size))
    needs_plugin = architecture in architectures
    imports = f'import timm_se_plugin  # registers {architecture}\n' if needs_plugin else ''
    result = 'model(transform(image)[None])'
    if network.num_classes:
        result = f'probabilities = {result}.{"sigmoid()" if is_multilabel else "softmax(-1)"}'
    else:
        result = f'features = {result}'
    return _card(
        lead=f'**`import timm_se_plugin` first** (the package `timm-se-plugin`, {__version__} or newer): without that '
             f'import timm raises `Unknown model ({architecture})`.' if needs_plugin else 'A model of timm.',
        usage=f"""import timm
{imports}model = timm.create_model('{hub_name(repo_id, revision)}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
{result}  # image: a PIL image""",
        rows=(
            ('Architecture', f'`{architecture}`'),
            ('Attention', _described(attn)),
            ('Classes, of which a picture has any number' if is_multilabel else 'Classes',
             _classes(network.num_classes, names)),
            ('Parameters', f'{cost.params:,}' + (f', {cost.attention_params:,} of them attention' if attn else '')),
            ('MACs', f'{cost.macs:,} for an input of {size}' + (
                f', {cost.attention_macs:,} of them attention' if attn else '')),
            ('Saved with', f'timm_se_plugin {__version__}, timm {timm.__version__}'),
        ),
        repo_id=repo_id, facts=facts, library_name='timm',
        pipeline_tag='image-classification' if network.num_classes else 'image-feature-extraction',
        tags=['timm', *(('timm_se_plugin',) if needs_plugin else ()), *_tags(attn)])


def _tags(attn: AttentionSpec | None) -> list[str]:
    """Tags of the Hub for an attention and its paper."""
    if attn is None:
        return []
    return [*attn.record.tags, *([f'arxiv:{attn.record.paper}'] if attn.record.paper else [])]


def detector_card(model: nn.Module, repo_id: str, facts: Facts, revision: str | None = None) -> str:
    """Card of a detector of MMDetection, in Markdown with the Hub's metadata at its head.

    Args:
        model: the detector, with its configuration in ``cfg`` and its classes in ``dataset_meta``.
        repo_id: the repository that the card is for, ``'user/repo'``.
        facts: what the detector itself cannot tell.
        revision: the branch that the card is for; ``main`` if None.
    """
    detector: Any = model
    source = hub_name(repo_id, revision)
    network = detector.cfg.model
    classes = list(detector.dataset_meta.get('classes', []))
    return _card(
        lead=f'**Needs `timm_se_plugin` and MMDetection** (`pip install "timm-se-plugin[mmdet]"`, {__version__} or '
             'newer): `import timm_se_plugin.detection` first.',
        usage=f"""import timm_se_plugin.detection
from mmdet.apis import inference_detector
from timm_se_plugin.detection.hub import pull_detector
detector = pull_detector('{source}')
found = inference_detector(detector, 'picture.jpg').pred_instances

# or: timm-se detect predict {source} pictures/ --output found""",
        rows=(
            ('Detector', network.type),
            ('Backbone', f'`{network.backbone.get("model_name", network.backbone.type)}`' + (
                f', depth {network.backbone.depth}' if 'depth' in network.backbone else '')),
            ('Attention', _described(getattr(detector.backbone, 'attn', None)) or _plugins(network.backbone)),
            ('Classes', _classes(len(classes), classes)),
            ('Parameters', f'{sum(p.numel() for p in detector.parameters()):,}'),
            ('Saved with', f'timm_se_plugin {__version__}'),
        ),
        repo_id=repo_id, facts=facts, library_name='mmdet', pipeline_tag='object-detection',
        tags=['mmdet', 'timm_se_plugin'])


def _classes(number: int, names: Sequence[str] | None) -> str | None:
    """The number of classes, and the names of the first twenty."""
    if not number or not names or len(names) != number:
        return str(number) if number else None
    return f'{number}: {", ".join(map(str, names[:20]))}{", …" if number > 20 else ""}'


def _plugins(backbone: Any) -> str | None:
    """The plugin layers of a backbone of MMDetection."""
    described = []
    for plugin in backbone.get('plugins') or ():
        options = {key: value for key, value in plugin['cfg'].items() if key != 'type'}
        stages = f', stages={tuple(plugin["stages"])!r}' if plugin.get('stages') else ''
        described.append(f'`{plugin["cfg"]["type"]}({", ".join(f"{k}={v!r}" for k, v in options.items())})` '
                         f'{plugin["position"].replace("_", " ")}{stages}')
    return '; '.join(described) or None


def _described(attn: AttentionSpec | None) -> str | None:
    return ', '.join(f'`{name}={value!r}`' for name, value in attn.to_kwargs().items()) if attn else None


def _card(
        lead: str, usage: str, rows: Iterable[Sequence[Any]], repo_id: str, facts: Facts, **metadata: Any,
) -> str:
    """Fill in the template.

    Args:
        lead: the first lines.
        usage: Python code that loads the model.
        rows: name and value of each property of the model; rows without a value are left out.
        repo_id: the repository, whose name is the heading.
        facts: what the model itself cannot tell.
        **metadata: as for ``huggingface_hub.ModelCardData``.
    """
    card = ModelCard.from_template(
        ModelCardData(license=facts.license, **metadata), template_path=str(_TEMPLATE), lead=lead,
        title=repo_id.rpartition('/')[2], usage=usage, facts=facts, rows=[row for row in rows if row[1] is not None])
    return f'{str(card).strip()}\n'
