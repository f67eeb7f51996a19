"""The papers' ablations as data: the network of each row, and the paper's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ['CHOSEN', 'STUDIES', 'Row', 'study_network', 'study_rows']


@dataclass(frozen=True)
class Row:
    """One row of an ablation.

    Args:
        name: name of the row, as in the paper.
        options: keywords of the model, added to those of the study's network.
        top1_error: the paper's top-1 error on ImageNet in per cent; None where the paper has no such row.
        parameters: the paper's number of parameters in millions; None where the paper does not give it.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    top1_error: float | None = None
    parameters: float | None = None


def _se(name: str, error: float | None, millions: float | None = None, **options: Any) -> Row:
    # The parameter counts of the SE paper's ablations are those of an excitation without bias.
    return Row(name, {'attn': 'se', 'attn_bias': False, **options}, error, millions)


def _sk(
        name: str, error: float | None, *kernels: int, millions: float | None = None, select: str = 'softmax',
) -> Row:
    return Row(name, {'attn': 'sk', 'attn_kernels': kernels, 'attn_select': select}, error, millions)


_PLAIN = Row('without', {'attn': 'none'}, 23.30, 25.6)
# SE-ResNet-50 in the SE paper (arXiv 1709.01507v4, Tables 10 to 16), SKNet-50 in the SK paper (arXiv 1903.06586,
# Table 7). Errors are of single crops on ImageNet.
STUDIES: dict[str, tuple[Row, ...]] = {
    'ratio': (
        *(_se(f'r = {r}', error, millions, attn_rd_ratio=1 / r) for r, error, millions in (
            (2, 22.29, 45.7), (4, 22.25, 35.7), (8, 22.26, 30.7))),
        # 1/16 is the default; without the option this is the network of the other studies, which is trained once.
        _se('r = 16', 22.28, 28.1), _se('r = 32', 22.72, 26.9, attn_rd_ratio=1 / 32), _PLAIN),
    'squeeze': (_se('max', 22.57, attn_squeeze='max'), _se('avg', 22.28)),
    'excitation': (
        _se('ReLU', 23.47, attn_gate='relu'), _se('tanh', 23.00, attn_gate='tanh'), _se('sigmoid', 22.28)),
    'stages': (
        _PLAIN, _se('first', 23.03, 25.6, attn_stages=1), _se('second', 23.04, 25.7, attn_stages=2),
        _se('third', 22.68, 26.4, attn_stages=3), _se('fourth', None, attn_stages=4), _se('all', 22.28, 28.1)),
    'integration': (
        _se('standard', 22.28), _se('pre', 22.23, attn_integration='pre'), _se('post', 22.78, attn_integration='post'),
        _se('identity', 22.20, attn_integration='identity'), _se('3x3', 22.48, 25.8, attn_integration='3x3')),
    'no_squeeze': (_PLAIN, _se('NoSqueeze', 22.93, 28.1, attn_squeeze='none'), _se('SE', 22.28, 28.1)),
    'branches': (
        _sk('3x3 + 5x5, SK', 20.79, 3, 5, millions=27.5), _sk('3x3 + 7x7, SK', 20.97, 3, 7, millions=27.5),
        _sk('3x3 + 5x5 + 7x7, SK', 20.76, 3, 5, 7), _sk('3x3 + 5x5, sum', None, 3, 5, select='sum')),
}

# The row of each study that is the papers' own network, with which they compare the others.
CHOSEN = {
    'ratio': 'r = 16', 'squeeze': 'avg', 'excitation': 'sigmoid', 'stages': 'all', 'integration': 'standard',
    'no_squeeze': 'SE', 'branches': '3x3 + 5x5, SK',
}


def study_rows(study: str) -> tuple[Row, ...]:
    """Rows of a study.

    Raises:
        ValueError: no study has this name.
    """
    if study not in STUDIES:
        raise ValueError(f'no study is called {study!r}; the studies are {", ".join(STUDIES)}')
    return STUDIES[study]


def study_network(study: str) -> str:
    """Name of the network on which the paper measured a study."""
    return 'sk_resnext50_32x4d_plugin' if study == 'branches' else 'se_resnet50_plugin'
