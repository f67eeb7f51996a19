"""A report on a network's gates in one HTML file, which loads nothing from the internet."""

import base64
import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..files.json_values import finite
from ..files.writing import write_atomically
from ..measuring.complexity import CONVENTION, complexity
from .figures import sampled_channels
from .pictures import UnusualImage
from .scale import ScaleStatistics
from .statistics import GateStatistics, LayerStatistics

__all__ = ['write_report']


def write_report(
        path: str | Path, model: nn.Module, statistics: GateStatistics, *, title: str, note: str = '',
        classes: Sequence[str] | None = None, pictures: Sequence[UnusualImage] = (), mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,), scale: ScaleStatistics | None = None,
        input_size: tuple[int, int, int] | None = None,
) -> None:
    """Write a report with the network's tree, its cost, charts, images and a table.

    Args:
        path: the HTML file.
        model: the network.
        statistics: statistics of the network's gates.
        title: headline.
        note: a line below the headline, for example on the images.
        classes: names of the classes in the charts; the first eight that have images if None.
        pictures: images to show.
        mean: means of the channels that the images were normalised with.
        std: standard deviations of the channels that the images were normalised with.
        scale: statistics of a Selective Kernel network on enlarged images.
        input_size: (C, H, W) of an image, for which the cost is counted; if None, the size in the network's
            configuration.

    Raises:
        ValueError: an unknown class, or one without images.
    """
    classes = statistics.seen_classes[:8] if classes is None else list(classes)
    indices = [statistics.class_index(name) for name in classes]
    cost = complexity(model, input_size)
    data = {
        'title': title, 'note': note, 'model': type(model).__name__, 'classes': classes,
        'convention': f'For an input of {"x".join(map(str, cost.input_size))}. {CONVENTION}.',
        'cards': [
            ['images', f'{statistics.images:,}'], ['classes with images', str(len(statistics.seen_classes))],
            ['attentions', str(len(statistics.layers))], ['parameters', f'{cost.params:,}'],
            ['of which attention', f'{100 * cost.attention_params / cost.params:.2g} %'], ['MACs', f'{cost.macs:,}'],
            ['of which attention', f'{100 * cost.attention_macs / cost.macs:.2g} %']],
        'modules': [[m.name, m.type, m.params, m.macs] for m in cost.modules],
        'layers': [_layer(layer, indices) for layer in statistics.layers],
        'pictures': [_picture(picture, statistics.classes, mean, std) for picture in pictures],
        'scale': scale and _scale(scale),
        'made': f'timm {timm.__version__}, torch {torch.__version__}',
    }
    # Without '<' no class name can end the script element.
    text = json.dumps(finite(data), separators=(',', ':')).replace('<', '\\u003c')
    template = (resources.files(__package__) / 'report.html').read_text(encoding='utf-8')
    write_atomically(Path(path), template.replace('__DATA__', text).encode())


def _layer(layer: LayerStatistics, indices: list[int]) -> dict[str, Any]:
    sampled = sampled_channels(layer.means.shape[2])
    low, high = layer.saturation
    return {
        'name': layer.name, 'gate': layer.gate, 'branches': list(layer.branches), 'channels': layer.means.shape[2],
        'sampled': sampled, 'overall': float(layer.mean.mean()), 'deviation': float(layer.std.mean()),
        'specificity': layer.specificity, 'chance': layer.chance, 'low': low, 'high': high,
        'mean': _rounded(layer.mean[:, sampled]),
        'means': [_rounded(layer.means[k][:, sampled]) for k in indices],
        'stds': [_rounded(layer.variances[k][:, sampled].sqrt()) for k in indices]}


def _scale(scale: ScaleStatistics) -> dict[str, Any]:
    branches = scale.statistics[0].layers[0].branches
    return {'scales': list(scale.scales), 'units': scale.units, 'difference': _rounded(scale.difference()),
            'branches': [branches[0], branches[-1]]}


def _picture(
        found: UnusualImage, classes: Sequence[str], mean: Sequence[float], std: Sequence[float],
) -> dict[str, Any]:
    from torchvision.transforms.functional import to_pil_image
    image = found.image.float() * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    shown = image[:3] if len(image) in (1, 3, 4) else image.mean(0, keepdim=True)  # the fourth is transparency
    picture = to_pil_image(shown.clamp(0, 1))
    picture.thumbnail((224, 224))
    file = io.BytesIO()
    picture.save(file, 'PNG')
    return {
        'src': f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}', 'label': classes[found.label],
        'deviation': found.deviation, 'layer': found.layer, 'index': found.index}


def _rounded(values: Tensor) -> Any:
    return torch.round(values, decimals=5).tolist()
