"""Sharing what was built or trained."""

from .push import push_to_hub

__all__ = ['push_to_hub']
