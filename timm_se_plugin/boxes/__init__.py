"""Detecting without MMDetection: a detector as an ONNX file, boxes in pictures, and the files that hold them."""

from ..files.packages import require

require('export', 'cv2', 'matplotlib')  # before the modules that import them

from .detecting import Detector, Found, detect, found_in, pictures_to_detect_in  # noqa: E402
from .drawing import draw, write_picture  # noqa: E402
from .onnx_detector import open_onnx_detector  # noqa: E402

__all__ = ['Detector', 'Found', 'detect', 'draw', 'found_in', 'open_onnx_detector',
           'pictures_to_detect_in', 'write_picture']
