"""The cost of a network in parameters, multiply-accumulates, memory and time, and the provenance of measurements."""

from .complexity import Complexity, ModuleCost, complexity, saved_bytes
from .provenance import provenance
from .published_costs import PUBLISHED, PublishedCost
from .site_tree import Node, draw_sites, site_tree

__all__ = [
    'PUBLISHED', 'Complexity', 'ModuleCost', 'Node', 'PublishedCost', 'complexity', 'draw_sites', 'provenance',
    'saved_bytes', 'site_tree',
]
