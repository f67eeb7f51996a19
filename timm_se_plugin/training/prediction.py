"""The classes of pictures: of any files, by any classifier."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from timm.data import create_transform
from torch import Tensor

from ..files.fonts import drawable, font_for
from ..files.pictures import Picture, readable
from ..files.writing import write_atomically

__all__ = ['Classifier', 'Prediction', 'check_sheet', 'draw_sheet', 'predict']


@dataclass(frozen=True)
class Classifier:
    """A classifier with all that a picture needs.

    Args:
        logits: maps images, (N, C, H, W), to logits, (N, classes).
        config: timm's data configuration: size, crop, interpolation, mean and deviation.
        names: of the classes, in the order of the logits.
        is_multilabel: whether a picture has any number of the classes, instead of one.
        upright: whether pictures are turned as their EXIF orientation says.
    """

    logits: Callable[[Tensor], Tensor]
    config: dict[str, Any]
    names: Sequence[str]
    is_multilabel: bool = False
    upright: bool = True

    def scores(self, x: Tensor) -> Tensor:
        """Probabilities of the classes, (N, classes), of images (N, C, H, W)."""
        logits = self.logits(x).float()
        return logits.sigmoid() if self.is_multilabel else logits.softmax(1)

    def images(self, files: Iterable[str | Path]) -> Iterator[tuple[str | Path, Tensor]]:
        """The pictures that can be read, with what the network gets, (C, H, W); others are named in the log."""
        transform: Any = create_transform(**self.config, is_training=False)
        return readable(files, Picture.of(self.config['input_size'][0], self.upright), transform)


@dataclass(frozen=True)
class Prediction:
    """The best classes of a picture.

    Args:
        file: the picture.
        classes: names and probabilities of the best classes, the best first; none may be good enough.
    """

    file: str
    classes: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """The prediction as JSON-safe values."""
        return {'file': self.file, 'classes': [{'label': label, 'score': round(score, 6)}
                                               for label, score in self.classes]}


@torch.no_grad()
def predict(
        classifier: Classifier, files: Iterable[str | Path], top: int | None = None, batch_size: int = 32,
        device: str = 'cpu', threshold: float | None = None,
) -> Iterator[Prediction]:
    """The best classes of each picture; an unreadable one is named in the log and passed over.

    A picture is turned upright as its EXIF orientation says, unless the training had ``--no-exif-orientation``, and
    then resized and cropped as in an evaluation.

    Args:
        classifier: of :func:`open_classifier`.
        files: the pictures.
        top: number of classes at most; if None, 5, or all for a classifier of any number of labels.
        batch_size: number of pictures that are computed at once.
        device: where the classifier computes.
        threshold: lowest probability of a class that is given; if None, 0.5 for a classifier of any number of labels.
    """
    if top is None:
        top = len(classifier.names) if classifier.is_multilabel else 5
    if threshold is None:
        threshold = 0.5 if classifier.is_multilabel else 0.0
    images = classifier.images(files)
    while batch := list(islice(images, batch_size)):
        x = torch.stack([image for _, image in batch]).to(device)
        scores, indices = classifier.scores(x).topk(min(top, len(classifier.names)))
        for (file, _), row, best in zip(batch, scores.tolist(), indices.tolist(), strict=True):
            yield Prediction(str(file), tuple(
                (classifier.names[i], score) for i, score in zip(best, row, strict=True) if score >= threshold))


def check_sheet(path: str | Path, pictures: Iterable[Path]) -> None:
    """Refuse a file for :func:`draw_sheet`, before the work that the sheet comes from.

    Raises:
        ValueError: Pillow does not write colours into files of this ending, or the file is one of the pictures.
    """
    try:
        _encoded(Image.new('RGB', (8, 8)), path)
    except Exception as error:  # Pillow raises exceptions of many classes
        raise ValueError(f'{path} does not end like a picture in colours, such as sheet.jpg') from error
    if Path(path).exists() and any(picture.samefile(path) for picture in pictures):
        raise ValueError(f'{path} is one of the pictures, which would be overwritten; give another name')


def _encoded(image: Image.Image, path: str | Path) -> bytes:
    """The image in the format of the file's ending."""
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[Path(path).suffix.lower()])
    return file.getvalue()


def draw_sheet(predictions: Sequence[Prediction], path: str | Path, columns: int = 6, side: int = 160) -> None:
    """Draw the pictures with their best class and its probability into one image file.

    Args:
        predictions: of :func:`predict`.
        path: the file, in the format of its ending.
        columns: number of pictures in a row, or more where the file would be higher than JPEG or WebP allow.
        side: width and height of a picture in pixels.
    """
    # A JPEG file has at most 65,500 rows of pixels, and a WebP file 16,383.
    most = (16_383 if Path(path).suffix.lower() == '.webp' else 65_500) // (side + 18)
    columns = min(max(columns, -(-len(predictions) // most)), max(len(predictions), 1))
    sheet = Image.new('RGB', (columns * side, -(-len(predictions) // columns) * (side + 18)), 'white')
    pen, picture = ImageDraw.Draw(sheet), Picture('RGB')
    for i, prediction in enumerate(predictions):
        x, y = i % columns * side, i // columns * (side + 18)
        with Image.open(prediction.file) as image:
            small = picture(image)
        small.thumbnail((side - 4, side - 4))
        sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
        label, score = prediction.classes[0] if prediction.classes else ('', None)
        label = drawable(label)
        text, font = '' if score is None else f' {score:.0%}', font_for(label, 12)
        while label and font.getlength(label + text) > side - 4:
            label = label[:-2] + '…' if len(label) > 2 else ''
        pen.text((x + 2, y + side + 1), label + text, 'black', font)
    write_atomically(Path(path), _encoded(sheet, path))
