"""Warnings of other packages about their own future, which a user of the command cannot act on."""

import re
import warnings

__all__ = ['silence_chatter']

# The beginning of each message, and its category.
_MESSAGES: tuple[tuple[str, type[Warning]], ...] = (
    # mmengine looks packages up with pkg_resources.
    ('pkg_resources is deprecated as an API. See https://setuptools.pypa.io/en/latest/pkg_resources.html.',
     UserWarning),
)


def silence_chatter() -> None:
    """Ignore the warnings above, and no others."""
    for message, category in _MESSAGES:
        warnings.filterwarnings('ignore', re.escape(message), category)
