"""The places of attention in a network, and its share of parameters and MACs, as a tree and as a picture."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import nn

from ..files.counting import counted
from ..placement import counted_attention
from .complexity import CONVENTION, Complexity, complexity

__all__ = ['Node', 'draw_sites', 'site_tree']


@dataclass(frozen=True)
class Node:
    """A module and all modules inside.

    Args:
        name: name in the network; empty for the network itself.
        type: name of the class.
        params: number of parameters.
        macs: multiply-accumulates for one image.
        attention_params: parameters of the attention layers inside.
        attention_macs: multiply-accumulates of the attention layers inside.
        sites: names of the attention layers inside, or of the module if it is one.
        children: the modules directly inside, if the module is the network or has more than one attention layer.
        input_size: (C, H, W) of the image.
    """

    name: str
    type: str
    params: int
    macs: int
    attention_params: int
    attention_macs: int
    sites: tuple[str, ...]
    children: tuple['Node', ...]
    input_size: tuple[int, int, int]

    def units(self) -> Iterator['Node']:
        """The parts of the network in order, each with at most one attention layer."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.units()

    def __str__(self) -> str:
        width = 2 + max(len(line[0]) for line in self._lines())
        head = f'{"":<{width}}{"parameters":>12}{"MACs":>16}{"of them attention":>22}'
        body = [f'{label:<{width}}{node.params:>12,}{node.macs:>16,}'
                + (f'{_share(node.attention_params, node.params):>12}{_share(node.attention_macs, node.macs):>10}'
                   if node.sites else '') for label, node in self._lines()]
        size = 'x'.join(map(str, self.input_size))
        return '\n'.join([f'{self.counted_sites()}, image {size}; {CONVENTION}', head, *body])

    def _lines(self, prefix: str = '', label: str = '') -> Iterator[tuple[str, 'Node']]:
        yield f'{label}{self.type}' + (f' + {self.site_names()}' if self.sites and not self.children else ''), self
        runs = [list(run) for _, run in groupby(self.children, Node._kind)]
        for i, run in enumerate(runs):
            branch, below = ('└─ ', '   ') if i == len(runs) - 1 else ('├─ ', '│  ')
            names = [node.name.rpartition('.')[2] for node in run]
            several = f'{names[0]} to {names[-1]}, each: ' if len(run) > 1 else f'{names[0]}: '
            yield from run[0]._lines(prefix + below, f'{prefix}{branch}{several}')

    def _kind(self) -> tuple[Any, ...]:
        """Neighbours with equal values here are shown as one line."""
        inner = tuple(site.removeprefix(self.name) for site in self.sites)
        return self.type, self.params, self.macs, inner

    def counted_sites(self) -> str:
        """How many attention layers are inside, in words."""
        return counted(len(self.sites), 'attention layer')

    def site_names(self) -> str:
        """Names of the attention layers within the module."""
        return ', '.join(site.removeprefix(self.name).removeprefix('.') or 'attention' for site in self.sites)


def site_tree(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Node:
    """Tree of a network, which ``print`` shows with equal neighbours as one.

    Args:
        model: any network that takes one batch of images.
        input_size: (C, H, W) of the image; if None, the size in the network's configuration.
    """
    return _node(model, '', complexity(model, input_size), tuple(counted_attention(model)))


def _node(module: nn.Module, name: str, cost: Complexity, sites: tuple[str, ...]) -> Node:
    inside = [m for m in cost.modules if not name or m.name == name or m.name.startswith(f'{name}.')]
    attention = [m for m in inside if m.is_attention]
    sites = tuple(site for site in sites if not name or site == name or site.startswith(f'{name}.'))
    children = tuple(
        _node(child, f'{name}.{child_name}' if name else child_name, cost, sites)
        for child_name, child in module.named_children()) if len(sites) > 1 or (sites and not name) else ()
    return Node(
        name, type(module).__name__,
        sum(m.params for m in inside), sum(m.macs for m in inside),
        sum(m.params for m in attention), sum(m.macs for m in attention), sites, children, cost.input_size)


def _share(part: int, whole: int) -> str:
    """A share in percent, with one digit that is not 0 at least."""
    percent = 100 * part / whole if whole else 0
    digits = max(2, -math.floor(math.log10(float(f'{percent:.0e}')))) if percent else 0
    return f'{percent:.{digits}f} %'


def draw_sites(tree: Node, path: str | Path, title: str = '') -> None:
    """Draw a bar for each part of a network, with the attention's share of it, into an image file.

    Args:
        tree: what :func:`site_tree` returns.
        path: the file, whose ending says whether it is PNG, SVG or PDF.
        title: text above the picture.
    """
    from matplotlib.figure import Figure

    units = [unit for unit in tree.units() if unit.params or unit.macs or unit.sites]
    labels = [f'{unit.name or unit.type}  ●' if unit.sites else unit.name for unit in units]
    figure = Figure(figsize=(10, 1.6 + 0.19 * len(units)), layout='constrained')
    for axes, what, whole in zip(figure.subplots(1, 2, sharey=True), ('params', 'macs'), (tree.params, tree.macs),
                                 strict=True):
        shares = [[100 * value / whole for value in values] for values in (
            [getattr(unit, what) - getattr(unit, f'attention_{what}') for unit in units],
            [getattr(unit, f'attention_{what}') for unit in units])]
        axes.barh(range(len(units)), shares[0], color='#b9c4cc', label='the network')
        axes.barh(range(len(units)), shares[1], left=shares[0], color='#d1495b', label='attention')
        part = getattr(tree, f'attention_{what}')
        name = {'params': 'parameters', 'macs': 'MACs'}[what]
        axes.set_title(f'{name}: {whole:,}\nattention {part:,} ({_share(part, whole)})', fontsize=9)
        axes.set_xlabel(f'% of all {name}', fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_yticks(range(len(units)), labels)
        axes.margins(y=0.01)
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc='outside lower center', ncols=2)
    figure.suptitle(f'{title}  ({tree.counted_sites()}, ●)', fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
