"""Detecting in pictures, and drawing what is found."""

import copy
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.apis import inference_detector
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import nn

from .drawing import draw, write_picture
from .picture_check import Picture, check_pictures, load_picture, pictures_of
from .running import check_fit, saved_meta

__all__ = ['compare', 'detect', 'draw', 'load_detector']


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
    # The copy protects the configuration, since some detectors write into it. SyncBN stays: in evaluation mode it
    # computes what BN does, and MMEngine's revert_sync_batchnorm would remove the activation in timm's norms.
    model = MODELS.build(copy.deepcopy(config.model))
    if checkpoint.endswith('.safetensors'):
        loaded = {'state_dict': load_file(checkpoint), 'meta': {'dataset_meta': config.get('dataset_meta', {})}}
    else:
        loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state_dict = clean_state_dict(loaded.get('state_dict', loaded))
    check_fit(model, state_dict, checkpoint)
    model.load_state_dict(state_dict, strict=False)  # after check_fit, only counters may be missing
    model.dataset_meta = saved_meta(loaded)
    model.cfg = copy.deepcopy(config)  # mmdet's inference changes the pipeline in it
    return model.to(device).eval()


def _class_names(model: Any, checkpoint: str) -> list[str]:
    """The names of a detector's classes in the order of its labels; numbers where the checkpoint has no names."""
    names = [str(name) for name in model.dataset_meta.get('classes', [])]
    if not names:
        print_log(f'{checkpoint} has no names of classes, and its detections are labelled by their numbers',
                  logger='current', level=logging.WARNING)
    return names


def _detections(
        model: nn.Module, picture: np.ndarray, file: str, classes: Sequence[str], score: float,
) -> tuple[list[list[float]], list[str], list[float]]:
    """Boxes (x1, y1, x2, y2 in pixels), classes and scores of what a detector finds with at least a score."""
    try:
        found = inference_detector(model, picture).pred_instances.cpu()
    except Exception as error:
        raise ValueError(f'{file}, of {picture.shape[1]}x{picture.shape[0]} pixels, cannot be detected in: '
                         f'{type(error).__name__}: {error}') from error
    found = found[found.scores >= score]
    labels = [classes[i] if i < len(classes) else str(i) for i in found.labels.tolist()]
    return found.bboxes.tolist(), labels, found.scores.tolist()


def _pictures_in(folder: Path) -> list[Path]:
    """The files of a folder that OpenCV reads; the log says how many others there are, by their endings."""
    files, left_out = [], Counter[str]()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith('.') and (
                cv2.haveImageWriter(path.name) or cv2.haveImageReader(str(path))):
            files.append(path)
        else:
            left_out['folders' if path.is_dir() else path.suffix.lower() or path.name] += 1
    if left_out:
        print_log(f'{folder}: {left_out.total()} entries are left out, which are no pictures that OpenCV reads: '
                  + ', '.join(f'{count} {kind}' for kind, count in left_out.most_common()), logger='current',
                  level=logging.WARNING)
    return files


def detect(
        config: Config, checkpoint: str, pictures: Iterable[str | Path], output: str | Path, score: float = 0.3,
        device: str = 'cpu',
) -> list[dict[str, Any]]:
    """Detect in pictures, and write each picture with its boxes, and ``detections.json``, into a folder.

    A picture is loaded as in the detector's test pipeline, which turns it as its EXIF orientation says unless
    ``color_type`` says otherwise.

    Args:
        config: the detector's configuration.
        checkpoint: the detector's weights, as for :func:`load_detector`.
        pictures: picture files, or folders, of which the picture files are taken, but not those of inner folders.
        output: the folder to write into. A picture keeps its name; where OpenCV does not write files of its ending,
            ``.png`` is added.
        score: the lowest score of a box that is kept.
        device: where to compute.

    Returns:
        The content of ``detections.json``: for each picture ``file`` and ``detections``, a list of ``label``,
        ``score`` and ``bbox`` (x1, y1, x2, y2 in pixels).

    Raises:
        FileNotFoundError: a picture does not exist, or a folder has none.
        ValueError: a file is not a whole picture, or cannot be written; two pictures have the same name; `output` holds
            one of the pictures; the checkpoint is of another detector.
    """
    files = [file for path in map(Path, pictures) for file in (_pictures_in(path) if path.is_dir() else [path])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f'no such file: {", ".join(missing)}' if missing else 'no picture was given, and '
                                'the folders have none that OpenCV reads')
    names = [file.name if cv2.haveImageWriter(file.name) else f'{file.name}.png' for file in files]
    if len(set(names)) < len(files):
        raise ValueError('two of the pictures have the same name, and would be written to one file')
    if any(file.resolve().parent == Path(output).resolve() for file in files):
        raise ValueError(f'output={str(output)!r} holds the pictures, which would be overwritten; give another folder')
    first = get_test_pipeline_cfg(config)[0]
    loader = LoadImageFromFile(**{name: first[name] for name in ('color_type', 'imdecode_backend') if name in first})
    given = [Picture(str(file), file, None, 'those given', loader) for file in files]
    check_pictures(given)
    model: Any = load_detector(config, checkpoint, device)
    classes = _class_names(model, checkpoint)
    Path(output).mkdir(parents=True, exist_ok=True)
    results = []
    for source, name in zip(given, names, strict=True):
        picture = load_picture(source)
        boxes, labels, scores = _detections(model, picture, source.path, classes, score)
        write_picture(Path(output, name), draw(picture, boxes, labels, scores, classes))
        results.append({'file': source.path, 'detections': [
            {'label': label, 'score': round(s, 4), 'bbox': [round(v, 2) for v in box]}
            for label, s, box in zip(labels, scores, boxes, strict=True)]})
    Path(output, 'detections.json').write_text(json.dumps(results, indent=1), encoding='utf-8')
    return results


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
        count: number of pictures, evenly spaced over the test set.
        score: the lowest score of a detection that is drawn.
        device: where to compute.

    Returns:
        The figure, (H, W, 3), BGR: two pairs in a row, each picture at half its height and width.

    Raises:
        ValueError: the test set has fewer pictures, or its annotations are refused (:mod:`~.coco`); a picture is broken
            or not of the size in the annotations; the checkpoint is of another detector.
    """
    model: Any = load_detector(config, checkpoint, device)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    if not 0 < count <= len(dataset):
        raise ValueError(f'count={count} is not possible: the test set has {len(dataset)} pictures')
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    pictures = [picture for i, picture in enumerate(pictures_of(dataset)) if i in chosen]
    check_pictures(pictures)
    names, classes = list(dataset.metainfo['classes']), _class_names(model, checkpoint)
    colours = [*names, *(name for name in classes if name not in names)]
    pairs = []
    for index, source in zip(chosen, pictures, strict=True):
        info, picture = dataset.get_data_info(index), load_picture(source)
        boxes, labels, scores = _detections(model, picture, info['img_path'], classes, score)
        half = [v // 2 for v in picture.shape[:2]]
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
