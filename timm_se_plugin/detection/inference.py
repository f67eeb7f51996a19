"""Detecting in pictures, and drawing what is found."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.apis import inference_detector
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.mask import mask2bbox
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from timm.models import clean_state_dict
from torch import nn

from ..boxes import Detector, Found, draw, found_in, write_picture
from ..boxes import detect as detect_by
from ..boxes.detecting import pictures_to_detect_in
from ..boxes.drawing import check_ending
from ..measuring.device import check_device
from .picture_check import check_pictures, load_picture, picture_files
from .running import check_fit, saved_meta

__all__ = ['compare', 'detect', 'detector_of', 'is_upright', 'load_detector']


def load_detector(config: Config, checkpoint: str, device: str = 'cpu') -> nn.Module:
    """Build a detector and load its weights, ready to infer.

    Args:
        config: the detector's configuration. Its ``dataset_meta`` names the classes where the weights do not, such as
            those in ``.safetensors``.
        checkpoint: weights of a training (``.pth``) or of a shared detector (``.safetensors``).
        device: where to compute.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is of another detector, or there is no such device.
    """
    check_device(device)
    init_default_scope(config.get('default_scope', 'mmdet'))
    # The copy protects the configuration, since some detectors write into it. SyncBN stays, since it computes what BN
    # does in evaluation mode.
    model = MODELS.build(copy.deepcopy(config.model))
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state_dict = clean_state_dict(loaded.get('state_dict', loaded))
    check_fit(model, state_dict, checkpoint)
    model.load_state_dict(state_dict, strict=False)  # after check_fit, only counters may be missing
    model.dataset_meta = saved_meta(loaded) or dict(config.get('dataset_meta', {}))
    model.cfg = copy.deepcopy(config)  # mmdet's inference changes the pipeline in it
    return model.to(device).eval()


def detector_of(model: Any, checkpoint: str = 'the detector') -> Detector:
    """A detector of MMDetection with what a picture needs.

    A picture is turned as its EXIF orientation says, unless the test pipeline says otherwise by ``color_type``.

    Args:
        model: of :func:`load_detector`.
        checkpoint: its name in messages.
    """
    def find(picture: np.ndarray, score: float) -> Found:
        found = inference_detector(model, np.ascontiguousarray(picture)).pred_instances.cpu()
        highest = float(found.scores.numpy().max(initial=0))
        found = found[found.scores >= score]
        masks = np.asarray(found.masks).astype(bool) if 'masks' in found else None
        # SOLO finds masks alone, and gives boxes of zeros beside them.
        boxes = found.bboxes if masks is None or found.bboxes.any() else mask2bbox(torch.from_numpy(masks))
        return Found(boxes.numpy(), found.scores.numpy(), found.labels.numpy(), masks, highest)

    names = [str(name) for name in model.dataset_meta.get('classes', [])]
    if not names:
        print_log(f'{checkpoint} has no names of classes, and its detections are labelled by their numbers',
                  logger='current', level=logging.WARNING)
    return Detector(find, names, is_upright(get_test_pipeline_cfg(model.cfg)[0]))


def is_upright(load: Mapping[str, Any]) -> bool:
    """Whether the step of a pipeline that loads pictures turns them as their EXIF orientation says."""
    color_type = load.get('color_type', 'color')
    return color_type != 'unchanged' and 'ignore_orientation' not in color_type


def detect(
        config: Config, checkpoint: str, pictures: Iterable[str | Path], output: str | Path, score: float = 0.3,
        device: str = 'cpu',
) -> list[dict[str, Any]]:
    """Detect in pictures by :func:`~timm_se_plugin.boxes.detect`, which says what is written and returned.

    Args:
        config: the detector's configuration.
        checkpoint: the detector's weights, as for :func:`load_detector`.
        pictures: picture files, and folders, which are searched with the folders in them.
        output: the folder to write into. A picture keeps its name, and the folders that it was found in; where OpenCV
            does not write colours into files of its ending, ``.png`` is added.
        score: the lowest score of a box that is kept.
        device: where to compute.

    Raises:
        FileNotFoundError: a picture does not exist, or a folder has none.
        ValueError: no picture can be detected in, or one cannot be written; two pictures would be written to one file;
            `output` holds one of the pictures; the checkpoint is of another detector.
    """
    targets = pictures_to_detect_in(pictures, output)
    detector = detector_of(load_detector(config, checkpoint, device), checkpoint)
    return detect_by(detector, targets, output, score)


def _heads(width: int, places: Sequence[int]) -> np.ndarray:
    """A strip, (16, width, 3), that says by turns 'annotated' and 'detected' at these places in pixels."""
    strip = np.full((16, width, 3), 255, np.uint8)
    for i, x in enumerate(places):
        cv2.putText(strip, ('annotated', 'detected')[i % 2], (x + 2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1,
                    cv2.LINE_AA)
    return strip


def compare(
        config: Config, checkpoint: str, output: str | Path, count: int = 6, score: float = 0.5, device: str = 'cpu',
) -> np.ndarray:
    """Draw pictures of the test set, each with its annotated boxes on the left and the detected ones on the right.

    Both halves have the names of their own source, the annotations or the checkpoint, and one colour for each name.

    Args:
        config: the detector's configuration, which names the test set.
        checkpoint: the detector's weights, as for :func:`load_detector`.
        output: the picture file to write.
        count: number of pictures, evenly spaced over the test set, or all if it has fewer.
        score: the lowest score of a detection that is drawn.
        device: where to compute.

    Returns:
        The figure, (H, W, 3), BGR: two pairs in a row, each picture at half its height and width.

    Raises:
        ValueError: `count` is less than 1; `output` does not end like a picture in colours; the annotations are
            refused (:mod:`~.coco`); a picture is broken or not of the size in the annotations; the checkpoint is of
            another detector.
    """
    check_ending(output)
    model: Any = load_detector(config, checkpoint, device)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    if count < 1:
        raise ValueError(f'count={count} is not 1 or more')
    count = min(count, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    pictures = [picture for i, picture in enumerate(picture_files(dataset)) if i in chosen]
    check_pictures(pictures)
    detector = detector_of(model, checkpoint)
    names, classes = list(dataset.metainfo['classes']), detector.names
    colours = [*names, *(name for name in classes if name not in names)]
    pairs = []
    for index, source in zip(chosen, pictures, strict=True):
        info, picture = dataset.get_data_info(index), load_picture(source)
        found = found_in(detector.find(picture, score), classes)
        # To be drawn; some pipelines load float32, or 16 bits a channel.
        picture = (picture // 257 if picture.dtype == np.uint16 else picture).astype(np.uint8)
        boxes, labels, scores = ([one[key] for one in found] for key in ('bbox', 'label', 'score'))
        half = [max(v // 2, 1) for v in picture.shape[:2]]
        small = cv2.resize(picture, half[::-1], interpolation=cv2.INTER_AREA)
        true = [instance['bbox'] for instance in info['instances']]
        true_labels = [names[instance['bbox_label']] for instance in info['instances']]
        pairs.append(np.hstack([draw(small, np.divide(true, 2), true_labels, classes=colours),
                                draw(small, np.divide(boxes, 2), labels, scores, colours)]))
    widths = [pair.shape[1] // 2 for pair in pairs[:2]]
    height, width = (8 + max(pair.shape[axis] for pair in pairs) for axis in (0, 1))
    figure = np.full(((count + 1) // 2 * height, 2 * width, 3), 255, np.uint8)
    for i, pair in enumerate(pairs):
        figure[i // 2 * height:, i % 2 * width:][:pair.shape[0], :pair.shape[1]] = pair
    figure = np.vstack([_heads(figure.shape[1], [x for column, half in enumerate(widths)
                                                 for x in (column * width, column * width + half)]), figure])
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_picture(output, figure)
    return figure
