"""How models travel: read, convert, save as a folder, describe, send to the Hub."""

from .convert import Conversion, convert, convert_file, convert_to_timm
from .folders import write_model
from .reading import read_weights
from .runs import TrainedClassifier, build_model, read_run
from .upload import Shared, upload

__all__ = [
    'Conversion', 'Shared', 'TrainedClassifier', 'build_model', 'convert', 'convert_file', 'convert_to_timm',
    'read_run', 'read_weights', 'upload', 'write_model',
]
