"""Sharing of built or trained models on the Hugging Face Hub."""

from .cards import classifier_card, detector_card
from .pull import pull_from_hub
from .push import push_to_hub
from .upload import Shared, upload

__all__ = ['Shared', 'classifier_card', 'detector_card', 'pull_from_hub', 'push_to_hub', 'upload']
