"""Reading, conversion and saving of weights: of files, trainings and other packages."""

from .convert import Conversion, convert, convert_file, convert_to_timm
from .facts import Facts
from .folders import write_model
from .reading import read_weights
from .runs import TrainedClassifier, build_model, read_run

__all__ = [
    'Conversion', 'Facts', 'TrainedClassifier', 'build_model', 'convert', 'convert_file', 'convert_to_timm',
    'read_run', 'read_weights', 'write_model',
]
