"""Published weights: which fit which network, and how they load."""

from .fetching import check_saved_weights
from .loading import checkpoint_filter
from .sources import Source, published_cfgs

__all__ = ['Source', 'check_saved_weights', 'checkpoint_filter', 'published_cfgs']
