"""A user's code, which `make lint` checks and nothing runs: the public interface says what it takes and returns.

In this file mypy refuses every expression of type Any.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from typing_extensions import assert_type

import timm_se_plugin
from timm_se_plugin import AttentionSpec
from timm_se_plugin.analysis import GateStatistics, LayerStatistics, gate_statistics
from timm_se_plugin.analysis.pruning import prune_by_gates
from timm_se_plugin.measuring.complexity import complexity
from timm_se_plugin.placement import Attention
from timm_se_plugin.sharing import Shared
from timm_se_plugin.weights import Conversion, Facts, convert_file


class Scale(nn.Module):
    """An attention of the user's own."""

    def __init__(self, channels: int, factor: float = 1.0, device: str | None = None, dtype: None = None) -> None:
        super().__init__()
        self.factor = factor


def specification(model: nn.Module) -> None:
    """What attention a network has."""
    spec = AttentionSpec('se', stages=(3, 4), rd_ratio=1 / 8, integration='pre', fused=False)
    AttentionSpec('se', fused='never')      # type: ignore[arg-type]
    AttentionSpec('se', bias='yes')         # type: ignore[arg-type]
    assert_type(AttentionSpec.of(model), AttentionSpec | None)
    assert_type(spec.stages, tuple[int, ...])
    assert_type(spec.rd_ratio, float | None)
    assert_type(spec.gate, str | None)
    assert_type(spec.create(64), nn.Module)
    assert_type(spec.record, Attention)


def surgery(model: nn.Module) -> None:
    """A network that gains attention, and loses it."""
    assert_type(timm_se_plugin.add_attention(model, 'se', stages=(3, 4)), dict[str, nn.Module])
    assert_type(timm_se_plugin.add_attention(model, AttentionSpec('sk')), dict[str, nn.Module])
    assert_type(timm_se_plugin.remove_attention(model), dict[str, nn.Module])
    assert_type(timm_se_plugin.fuse_for_inference(model, (3, 224, 224)), nn.Module)
    assert_type(timm_se_plugin.register_attention('scale', Scale, paper='2106.03357'), Attention)


def reading(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """What the gates do."""
    statistics = gate_statistics(model, batches, ['cat', 'dog'])
    assert_type(statistics, GateStatistics)
    assert_type(statistics.classes, tuple[str, ...])
    layer = statistics.layer('layer4.1.se')
    assert_type(layer, LayerStatistics)
    assert_type(layer.mean, Tensor)
    assert_type(layer.specificity, float)
    assert_type(layer.saturation, tuple[float, float])
    assert_type(prune_by_gates(model, statistics, 0.25, (3, 64, 64)), nn.Module)
    assert_type(complexity(model).macs, int)


def sharing(model: nn.Module, folder: Path) -> None:
    """A model that travels."""
    shared = timm_se_plugin.push_to_hub(model, 'user/repo', Facts(license='apache-2.0'), dry_run=True)
    assert_type(shared, Shared)
    assert_type(shared.files, Mapping[str, int])
    assert_type(shared.url, str | None)
    conversion = convert_file(folder / 'weights.pth', 'se_resnet50_plugin', folder)
    assert_type(conversion, Conversion)
    assert_type(conversion.missing, tuple[str, ...])
