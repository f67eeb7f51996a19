"""Detecting in pictures, and drawing what is found."""

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.apis import inference_detector
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import nn

from .running import check_fit

__all__ = ['compare', 'detect', 'draw', 'load_detector']

_COLOURS = ((60, 60, 220), (200, 60, 90), (0, 160, 240), (60, 170, 60), (180, 0, 180), (190, 150, 0))  # BGR


def load_detector(config: Config, checkpoint: str, device: str = 'cpu') -> nn.Module:
    """Build a detector and load its weights, ready to infer.

    Args:
        config: the detector's configuration. For ``.safetensors`` weights, which do not name the classes, it has
            ``dataset_meta``.
        checkpoint: weights of a training (``.pth``) or of a shared detector (``.safetensors``).
        device: where to compute.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is of another detector.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    # The copy protects the configuration, since some detectors write into theirs. SyncBN stays: in evaluation mode it
    # computes what BN does, and MMEngine's revert_sync_batchnorm would remove the activation in timm's norms.
    model = MODELS.build(copy.deepcopy(config.model))
    if checkpoint.endswith('.safetensors'):
        loaded = {'state_dict': load_file(checkpoint), 'meta': {'dataset_meta': config.get('dataset_meta', {})}}
    else:
        loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state_dict = clean_state_dict(loaded.get('state_dict', loaded))
    check_fit(model, state_dict, checkpoint)
    model.load_state_dict(state_dict, strict=False)  # after check_fit, only counters may be missing
    meta = loaded.get('meta', {})
    of_version_2 = {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    model.dataset_meta = {key.lower(): value for key, value in meta.get('dataset_meta', of_version_2).items()}
    model.cfg = copy.deepcopy(config)  # mmdet's inference changes the pipeline in it
    return model.to(device).eval()


def draw(
        picture: np.ndarray, boxes: Iterable[Iterable[float]], labels: Sequence[str], scores: Sequence[float] = (),
        classes: Sequence[str] = (),
) -> np.ndarray:
    """Draw boxes into a copy of a picture.

    Args:
        picture: (H, W, 3), BGR.
        boxes: (N, 4), corners x1, y1, x2, y2 in pixels.
        labels: the class of each box.
        scores: the score of each box, which is written beside the label; may be empty.
        classes: all classes, each of which keeps its colour from picture to picture; by default those in `labels`.
    """
    out = np.ascontiguousarray(picture).copy()
    names = list(classes) or sorted(set(labels))
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        colour = _COLOURS[names.index(label) % len(_COLOURS)]
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(out, (x1, y1), (x2, y2), colour, 1)
        text = f'{label} {scores[i]:.2f}' if len(scores) else label
        top = max(y1 - 11, 0)
        width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.35, 1)[0][0]
        cv2.rectangle(out, (x1, top), (x1 + width, top + 11), colour, cv2.FILLED)
        cv2.putText(out, text, (x1, top + 9), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255), 1, cv2.LINE_AA)
    return out


def _read(file: str | Path) -> np.ndarray:
    picture = cv2.imread(str(file))
    if picture is None:
        raise ValueError(f'{file} is not a picture that OpenCV reads')
    return picture


def _detections(
        model: nn.Module, picture: np.ndarray, classes: Sequence[str], score: float,
) -> tuple[list[list[float]], list[str], list[float]]:
    """Boxes (x1, y1, x2, y2 in pixels), classes and scores of what a detector finds with at least a score."""
    found = inference_detector(model, picture).pred_instances.cpu()
    found = found[found.scores >= score]
    labels = [classes[i] if i < len(classes) else str(i) for i in found.labels.tolist()]
    return found.bboxes.tolist(), labels, found.scores.tolist()


def detect(
        config: Config, checkpoint: str, pictures: Iterable[str | Path], output: str | Path, score: float = 0.3,
        device: str = 'cpu',
) -> list[dict[str, Any]]:
    """Detect in pictures, and write each picture with its boxes, and ``detections.json``, into a folder.

    Args:
        config: the detector's configuration.
        checkpoint: the detector's weights, as for :func:`load_detector`.
        pictures: picture files, or folders of picture files.
        output: the folder to write into.
        score: the lowest score of a box that is kept.
        device: where to compute.

    Returns:
        The content of ``detections.json``: for each picture ``file`` and ``detections``, a list of ``label``,
        ``score`` and ``bbox`` (x1, y1, x2, y2 in pixels).

    Raises:
        FileNotFoundError: a picture does not exist, or a folder has none.
        ValueError: a file is not a picture, two pictures have the same name, `output` holds one of the pictures, or
            the checkpoint is of another detector.
    """
    files = [file for path in map(Path, pictures) for file in (
        sorted(f for f in path.iterdir() if f.suffix.lower() in ('.jpg', '.jpeg', '.png', '.bmp'))
        if path.is_dir() else [path])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f'no such file: {", ".join(missing)}' if missing else 'no picture was given, and '
                                'the folders have none (.jpg, .jpeg, .png, .bmp)')
    foreign = [str(file) for file in files if not (cv2.haveImageReader(str(file)) and cv2.haveImageWriter(str(file)))]
    if foreign:
        raise ValueError(f'{", ".join(foreign)}: OpenCV cannot read the content, or cannot write a file of that ending')
    if len({file.name for file in files}) < len(files):
        raise ValueError('two of the pictures have the same name, and would be written to one file')
    if any(file.resolve().parent == Path(output).resolve() for file in files):
        raise ValueError(f'output={str(output)!r} holds the pictures, which would be overwritten; give another folder')
    model: Any = load_detector(config, checkpoint, device)
    classes = list(model.dataset_meta.get('classes', []))
    Path(output).mkdir(parents=True, exist_ok=True)
    results = []
    for file in files:
        picture = _read(file)
        boxes, labels, scores = _detections(model, picture, classes, score)
        cv2.imwrite(str(Path(output, file.name)), draw(picture, boxes, labels, scores, classes))
        results.append({'file': str(file), 'detections': [
            {'label': label, 'score': round(s, 4), 'bbox': [round(v, 2) for v in box]}
            for label, s, box in zip(labels, scores, boxes, strict=True)]})
    Path(output, 'detections.json').write_text(json.dumps(results, indent=1))
    return results


def compare(
        config: Config, checkpoint: str, output: str | Path, count: int = 6, score: float = 0.5, device: str = 'cpu',
) -> np.ndarray:
    """Draw pictures of the test set, each with its annotated boxes on the left and the detected ones on the right.

    Args:
        config: the detector's configuration, which names the test set.
        checkpoint: the detector's weights, as for :func:`load_detector`.
        output: the picture file to write.
        count: number of pictures, evenly spaced over the test set.
        score: the lowest score of a detection that is drawn.
        device: where to compute.

    Returns:
        The figure, (H, W, 3), BGR: two pairs in a row, each picture at half its height and width.

    Raises:
        ValueError: the test set has fewer pictures, a file is not a picture, or the checkpoint is of another detector.
    """
    model: Any = load_detector(config, checkpoint, device)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    if not 0 < count <= len(dataset):
        raise ValueError(f'count={count} is not possible: the test set has {len(dataset)} pictures')
    classes = list(dataset.metainfo['classes'])
    pairs = []
    for index in np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist():
        info = dataset.get_data_info(index)
        picture = _read(info['img_path'])
        true = [instance['bbox'] for instance in info['instances']]
        names = [classes[instance['bbox_label']] for instance in info['instances']]
        boxes, labels, scores = _detections(model, picture, classes, score)
        half = [v // 2 for v in picture.shape[:2]]
        small = cv2.resize(picture, half[::-1], interpolation=cv2.INTER_AREA)
        pairs.append(np.hstack([draw(small, np.divide(true, 2), names, classes=classes),
                                draw(small, np.divide(boxes, 2), labels, scores, classes)]))
    height, width = (8 + max(pair.shape[axis] for pair in pairs) for axis in (0, 1))
    figure = np.full(((count + 1) // 2 * height, 2 * width, 3), 255, np.uint8)
    for i, pair in enumerate(pairs):
        figure[i // 2 * height:, i % 2 * width:][:pair.shape[0], :pair.shape[1]] = pair
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(output), figure)
    return figure
