"""Published weights: which fit which network, and how they load."""

from .loading import checkpoint_filter
from .sources import Source, published_cfgs

__all__ = ['Source', 'checkpoint_filter', 'published_cfgs']
