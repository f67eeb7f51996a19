"""A detector in an ONNX file, run by ONNX Runtime on pictures of any size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from ..files.onnx_files import DETECTOR, open_onnx_file
from .detecting import Detector, Found

__all__ = ['open_onnx_detector', 'session_detector']


def open_onnx_detector(file: str | Path) -> Detector:
    """Open a detector that ``timm-se export`` wrote, on the CPU. MMDetection is not needed.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: ONNX Runtime is not installed.
        ValueError: the file is broken, or is no detector.
    """
    return session_detector(*open_onnx_file(file, DETECTOR))


def session_detector(session: Any, description: Mapping[str, Any]) -> Detector:
    """The detector that a session of ONNX Runtime computes, with the description in the file's metadata."""
    names = [output.name for output in session.get_outputs()]

    def find(picture: np.ndarray, score: float) -> Found:
        images, scale = prepared(picture, description)
        found = dict(zip(names, session.run(None, {'images': images}), strict=True))
        kept = found['scores'][0] >= max(score, np.finfo(np.float32).tiny)  # a score of 0 is no detection
        boxes = found['boxes'][0][kept] / np.array([*scale, *scale], np.float32)
        masks = None
        if 'masks' in found:
            masks = pasted(found['masks'][0][kept], boxes, picture.shape[:2], description['mask_threshold'])
        return Found(boxes, found['scores'][0][kept], found['labels'][0][kept], masks,
                     float(found['scores'][0].max(initial=0)))
    return Detector(find, description['label_names'], description['upright'])


def prepared(picture: np.ndarray, description: Mapping[str, Any]) -> tuple[np.ndarray, tuple[float, float]]:
    """A picture, (H, W, 3), BGR, as the file takes it, (1, 3, h, w), and w / W and h / H."""
    height, width = picture.shape[:2]
    size = width, height
    if description['resize']:
        size = tuple(description['resize'])
        if description['keep_ratio']:
            factor = min(max(size) / max(height, width), min(size) / min(height, width))
            size = int(width * factor + 0.5), int(height * factor + 0.5)
    picture = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_LINEAR)
    channels = picture[..., ::-1] if description['channel_order'] == 'RGB' else picture
    normed = (channels.astype(np.float32) / 255 - np.float32(description['mean'])) / np.float32(description['std'])
    return np.ascontiguousarray(normed.transpose(2, 0, 1)[None]), (size[0] / width, size[1] / height)


def pasted(masks: np.ndarray, boxes: np.ndarray, size: Sequence[int], threshold: float) -> np.ndarray:
    """Masks on grids over their boxes as pixels of a picture: those whose probability is at least the threshold.

    Shape: (N, h, w), (N, 4), the size (H, W) -> (N, H, W).
    """
    out = np.zeros((len(masks), *size), bool)
    for mask, (x1, y1, x2, y2), pixels in zip(masks, boxes, out, strict=True):
        rows, columns = (slice(max(int(low) - 1, 0), int(np.ceil(high)) + 1) for low, high in ((y1, y2), (x1, x2)))
        y, x = (np.arange(part.start, min(part.stop, limit), dtype=np.float32) + 0.5
                for part, limit in zip((rows, columns), size, strict=True))
        y, x = (y - y1) / (y2 - y1) * 2 - 1, (x - x1) / (x2 - x1) * 2 - 1
        grid = torch.from_numpy(np.stack(np.meshgrid(x, y), -1)).float()
        values = F.grid_sample(torch.from_numpy(mask)[None, None], grid[None], align_corners=False)[0, 0]
        pixels[rows, columns] = values.numpy() >= threshold
    return out
