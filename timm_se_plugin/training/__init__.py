"""Training and evaluation of classifiers with timm's parts: one command from a recipe to an evaluated network."""

from . import _requirements  # noqa: F401  (the check of timm's version comes before all other imports)
from .config import list_recipes, parse_evaluation, parse_options
from .evaluation import Evaluation, evaluate, evaluate_classifier
from .loop import train_classifier

__all__ = [
    'Evaluation', 'evaluate', 'evaluate_classifier', 'list_recipes', 'parse_evaluation', 'parse_options',
    'train_classifier']
