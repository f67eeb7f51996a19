"""Sharing on the Hugging Face Hub what was built or trained."""

from .cards import classifier_card, detector_card
from .push import push_to_hub
from .upload import Shared, upload

__all__ = ['Shared', 'classifier_card', 'detector_card', 'push_to_hub', 'upload']
