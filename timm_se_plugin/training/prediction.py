"""The classes of pictures: of any files, by any classifier."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image, ImageDraw, ImageFont
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
from torch import Tensor

from ..files.hub_files import CONFIG, FOLDER
from ..models.names import check_model
from ..weights.runs import data_config, read_run
from .folders import picture_endings
from .images import Picture

__all__ = ['Classifier', 'Prediction', 'draw_sheet', 'open_classifier', 'pictures_of', 'predict', 'readable']

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """A classifier with all that a picture needs.

    Args:
        logits: maps images, (N, C, H, W), to logits, (N, classes).
        config: timm's data configuration: size, crop, interpolation, mean and deviation.
        names: of the classes, in the order of the logits.
    """

    logits: Callable[[Tensor], Tensor]
    config: dict[str, Any]
    names: Sequence[str]


@dataclass(frozen=True)
class Prediction:
    """The best classes of a picture.

    Args:
        file: the picture.
        classes: names and probabilities of the best classes, the best first.
    """

    file: str
    classes: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON-safe values."""
        return {'file': self.file, 'classes': [{'label': label, 'score': round(score, 6)}
                                               for label, score in self.classes]}


def open_classifier(place: str, device: str = 'cpu') -> Classifier:
    """Load a classifier.

    Args:
        place: folder of a run or of a saved model, ``'hf-hub:user/repo'``, ``'local-dir:folder'``, an ``.onnx`` file of
            :func:`~.onnx_file.export_onnx`, or a name of timm, whose published weights are then loaded.
        device: where to compute.

    Raises:
        ValueError: an unknown name, a name without published weights, a folder without a model, or a network without
            classes.
    """
    if place.endswith('.onnx'):
        from .onnx_file import open_onnx
        return open_onnx(place)
    config: dict[str, Any] | None = None
    names: Sequence[str] | None = None
    if os.path.isdir(place) and not os.path.isfile(os.path.join(place, CONFIG)):
        run = read_run(place)
        if run is None:
            raise ValueError(f'{place} has no {CONFIG}, as a saved model has, and no model_best.pth.tar and no '
                             'last.pth.tar, as a training leaves')
        model, config, names = run.model, run.data_config, run.label_names
    else:
        name = f'{FOLDER}{place}' if os.path.isdir(place) else place
        check_model(name)
        if ':' not in name and not timm.models.is_model_pretrained(name):
            raise ValueError(f'{name} has no published weights, and random ones predict nothing; --model takes the '
                             'folder of a run or of a saved model too')
        model = timm.create_model(name, pretrained=True)
    network: Any = model.to(device).eval()
    if not network.num_classes:
        raise ValueError(f'{place} gives features and no classes')
    names = names or network.pretrained_cfg.get('label_names') or _imagenet(network)
    if not names or len(names) != network.num_classes:
        names = [str(i) for i in range(network.num_classes)]
        _logger.warning('%s has no names of classes, which are called by their numbers', place)
    return Classifier(network, config or data_config({}, network), names)


def _imagenet(model: Any) -> list[str] | None:
    subset = infer_imagenet_subset(model)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]


def pictures_of(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are given, and of a folder those in it and below it that Pillow reads by their ending, sorted.

    Raises:
        FileNotFoundError: a path does not exist, or there is no picture.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [Path(folder, file) for folder, _, files in os.walk(path, followlinks=True) for file in files]
            found += sorted(file for file in inside if file.suffix.lower() in picture_endings()
                            and not any(part.startswith('.') for part in file.relative_to(path).parts))
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f'there is no file or folder {path}')
    if not found:
        raise FileNotFoundError(f'there are no pictures in {", ".join(map(str, paths))}')
    return found


@torch.no_grad()
def predict(
        classifier: Classifier, files: Iterable[str | Path], top: int = 5, batch_size: int = 32, device: str = 'cpu',
) -> Iterator[Prediction]:
    """The best classes of each picture; an unreadable one is named in the log and passed over.

    A picture is turned upright as its EXIF orientation says, and then resized and cropped as in an evaluation.

    Args:
        classifier: of :func:`open_classifier`.
        files: the pictures.
        top: number of classes.
        batch_size: number of pictures that are computed at once.
        device: where the classifier computes.
    """
    picture = Picture.of(classifier.config['input_size'][0], upright=True)
    transform: Any = create_transform(**classifier.config, is_training=False)
    images = readable(files, picture, transform)
    while batch := list(islice(images, batch_size)):
        x = torch.stack([image for _, image in batch]).to(device)
        scores, indices = classifier.logits(x).float().softmax(1).topk(min(top, len(classifier.names)))
        for (file, _), row, best in zip(batch, scores.tolist(), indices.tolist(), strict=True):
            yield Prediction(str(file), tuple((classifier.names[i], score) for i, score in zip(best, row, strict=True)))


def readable(
        files: Iterable[str | Path], picture: Picture, transform: Callable[[Image.Image], Tensor],
) -> Iterator[tuple[str | Path, Tensor]]:
    """The files that are whole pictures, each with its image, (C, H, W); the log names the others."""
    for file in files:
        try:
            with Image.open(file) as image:
                yield file, transform(picture(image))
        except MemoryError:
            raise
        except Exception as error:  # a broken file makes Pillow raise exceptions of many classes
            _logger.warning('%s cannot be read (%s); it is passed over', file, error)


def draw_sheet(predictions: Sequence[Prediction], path: str | Path, columns: int = 6, side: int = 160) -> None:
    """Draw the pictures with their best class and its probability into one image file.

    Args:
        predictions: of :func:`predict`.
        path: the file, in the format of its ending.
        columns: number of pictures in a row.
        side: width and height of a picture in pixels.
    """
    columns = min(columns, max(len(predictions), 1))
    sheet = Image.new('RGB', (columns * side, -(-len(predictions) // columns) * (side + 18)), 'white')
    pen, font, picture = ImageDraw.Draw(sheet), ImageFont.load_default(12), Picture('RGB')
    for i, prediction in enumerate(predictions):
        x, y = i % columns * side, i // columns * (side + 18)
        with Image.open(prediction.file) as image:
            small = picture(image)
        small.thumbnail((side - 4, side - 4))
        sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
        label, score = prediction.classes[0]
        text = f' {score:.0%}'
        while label and font.getlength(label + text) > side - 4:
            label = label[:-2] + '…' if len(label) > 2 else ''
        pen.text((x + 2, y + side + 1), label + text, 'black', font)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
