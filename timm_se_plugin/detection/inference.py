"""From weights and pictures to pictures with boxes."""

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
    """Detector with the weights of a checkpoint that training wrote, or a shared one's, ready to infer.

    Args:
        config: the detector; beside ``.safetensors`` weights, which say nothing of them, with the ``dataset_meta``.
        checkpoint: its weights.
        device: where to compute.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is of another detector.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    # Some detectors write into their configuration. SyncBN computes what BN does while it does not learn; MMEngine's
    # revert_sync_batchnorm would take the activation from timm's.
    model = MODELS.build(copy.deepcopy(config.model))
    if checkpoint.endswith('.safetensors'):
        loaded = {'state_dict': load_file(checkpoint), 'meta': {'dataset_meta': config.get('dataset_meta', {})}}
    else:
        loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state_dict = clean_state_dict(loaded.get('state_dict', loaded))
    check_fit(model, state_dict, checkpoint)
    model.load_state_dict(state_dict, strict=False)  # check_fit has found all but counters
    meta = loaded.get('meta', {})
    of_version_2 = {key: meta[key] for key in ('CLASSES', 'PALETTE') if key in meta}
    model.dataset_meta = {key.lower(): value for key, value in meta.get('dataset_meta', of_version_2).items()}
    model.cfg = copy.deepcopy(config)  # mmdet changes its pipeline
    return model.to(device).eval()


def draw(
        picture: np.ndarray, boxes: Sequence[Sequence[float]], labels: Sequence[str], scores: Sequence[float] = (),
        classes: Sequence[str] = (),
) -> np.ndarray:
    """Copy of a picture with boxes.

    Args:
        picture: (H, W, 3), BGR.
        boxes: (N, 4), corners x1, y1, x2, y2 in pixels.
        labels: what is in each box.
        scores: written beside the labels, if given.
        classes: all labels there may be, for constant colours.
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


def detect(
        config: Config, checkpoint: str, pictures: Iterable[str | Path], output: str | Path, score: float = 0.3,
        device: str = 'cpu',
) -> list[dict[str, Any]]:
    """Detect in pictures; write each with its boxes, and ``detections.json``, into a folder.

    Args:
        config: the detector.
        checkpoint: its weights.
        pictures: files, or folders of them.
        output: the folder.
        score: boxes below it are left out.
        device: where to compute.

    Returns:
        What is written to the JSON file: for each picture ``file`` and ``detections``, a list of ``label``, ``score``
        and ``bbox`` (x1, y1, x2, y2 in pixels).

    Raises:
        FileNotFoundError: no such picture, or none in a folder.
        ValueError: a file that is not a picture, two of one name, an output folder that holds one of them, or a
            checkpoint of another detector.
    """
    files = [file for path in map(Path, pictures) for file in (
        sorted(f for f in path.iterdir() if f.suffix.lower() in ('.jpg', '.jpeg', '.png', '.bmp'))
        if path.is_dir() else [path])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f'no such picture: {", ".join(missing) or "the folder has none"}')
    foreign = [str(file) for file in files if not (cv2.haveImageReader(str(file)) and cv2.haveImageWriter(str(file)))]
    if foreign:  # before anything is detected
        raise ValueError(f'{", ".join(foreign)}: not a picture that OpenCV reads, or not named as one that it writes')
    if len({file.name for file in files}) < len(files):
        raise ValueError('two pictures have one name, and would be written to one file')
    if any(file.resolve().parent == Path(output).resolve() for file in files):
        raise ValueError(f'output={str(output)!r} is not allowed: the pictures lie there, and would be overwritten')
    model: Any = load_detector(config, checkpoint, device)
    classes = list(model.dataset_meta.get('classes', []))
    Path(output).mkdir(parents=True, exist_ok=True)
    results = []
    for file in files:
        picture = _read(file)
        found = inference_detector(model, picture).pred_instances.cpu()
        found = found[found.scores >= score]
        labels = [classes[i] if i < len(classes) else str(i) for i in found.labels.tolist()]
        boxes, scores = found.bboxes.tolist(), found.scores.tolist()
        cv2.imwrite(str(Path(output, file.name)), draw(picture, boxes, labels, scores, classes))
        results.append({'file': str(file), 'detections': [
            {'label': label, 'score': round(s, 4), 'bbox': [round(v, 2) for v in box]}
            for label, s, box in zip(labels, scores, boxes, strict=True)]})
    Path(output, 'detections.json').write_text(json.dumps(results, indent=1))
    return results


def compare(
        config: Config, checkpoint: str, output: str | Path, count: int = 6, score: float = 0.5, device: str = 'cpu',
) -> np.ndarray:
    """Figure of test pictures, each with its annotated boxes on the left and the detected ones on the right.

    Args:
        config: the detector and its test set.
        checkpoint: its weights.
        output: the picture file to write.
        count: how many pictures, evenly spaced over the set.
        score: detections below it are left out.
        device: where to compute.

    Returns:
        The figure, (H, W, 3), BGR: two pictures a row, a quarter of their size.

    Raises:
        ValueError: more pictures than the set has, a file that is not one, or a checkpoint of another detector.
    """
    model: Any = load_detector(config, checkpoint, device)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    if not 0 < count <= len(dataset):
        raise ValueError(f'count={count} is not allowed; allowed: 1 to {len(dataset)}, the pictures of the set')
    classes = list(dataset.metainfo['classes'])
    pairs = []
    for index in np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist():
        info = dataset.get_data_info(index)
        picture = _read(info['img_path'])
        true = [(instance['bbox'], classes[instance['bbox_label']]) for instance in info['instances']]
        found = inference_detector(model, picture).pred_instances.cpu()
        found = found[found.scores >= score]
        half = [v // 2 for v in picture.shape[:2]]
        small = cv2.resize(picture, half[::-1], interpolation=cv2.INTER_AREA)
        pairs.append(np.hstack([
            draw(small, [[v / 2 for v in box] for box, _ in true], [label for _, label in true], classes=classes),
            draw(small, (found.bboxes / 2).tolist(), [classes[i] for i in found.labels.tolist()],
                 found.scores.tolist(), classes)]))
    height, width = (max(pair.shape[axis] for pair in pairs) for axis in (0, 1))
    gap = 8
    figure = np.full(((count + 1) // 2 * (height + gap), 2 * (width + gap), 3), 255, np.uint8)
    for i, pair in enumerate(pairs):
        top, left = i // 2 * (height + gap), i % 2 * (width + gap)
        figure[top:top + pair.shape[0], left:left + pair.shape[1]] = pair
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(output), figure)
    return figure
