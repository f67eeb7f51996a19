"""COCO's annotations read by name: label ``i`` is the i-th of ``classes``, whatever the order in the file.

Importing this module registers ``CocoDataset`` and ``CocoMetric`` in place of MMDetection's classes of these names,
which number the classes in the order of the file, and ignore a class that the file does not have.
"""

import json
import logging
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import mmdet.datasets
import mmdet.evaluation
import numpy as np
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from ..files.counting import counted
from ..files.pictures import reason, with_slashes

__all__ = ['CocoDataset', 'CocoMetric', 'category_ids', 'class_names', 'read_coco']


def _comparable(name: Any) -> str:
    """A name in a form to compare: JSON and options may hold numbers as names, and 'é' may be one character or two."""
    return unicodedata.normalize('NFC', str(name))


def class_names(classes: Any, where: str) -> tuple[str, ...]:
    """The names of classes, as strings.

    Args:
        classes: the value of ``metainfo.classes``.
        where: owner of these classes, for the message.

    Raises:
        ValueError: `classes` is a string, is empty, or has a name twice.
    """
    if isinstance(classes, str):
        raise ValueError(f'{where}: classes={classes!r} is a string, whose letters would be the names; write one class '
                         f'with a comma, classes=({classes!r},)')
    names = tuple(map(_comparable, classes))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        raise ValueError(f'{where}: ' + (f'classes has the name {twice[0]!r} more than once; give each class a name of '
                                         'its own' if twice else 'classes is empty; give the names of the classes'))
    return names


def category_ids(annotations: dict[str, Any], classes: Iterable[str], where: str) -> list[int]:
    """Find the category of each class by its name.

    Args:
        annotations: the content of a file in COCO's format.
        classes: the names in the order of the labels.
        where: the file, for the message.

    Returns:
        The id of each class's category; of several categories with one name, the category that has boxes.

    Raises:
        ValueError: the file does not have one of the names, or the boxes of a name belong to several categories.
    """
    boxes, names = _boxes_and_names(annotations)
    ids: dict[str, list[int]] = defaultdict(list)
    for id_, name in names.items():
        ids[name].append(id_)
    wanted = [_comparable(name) for name in classes]
    missing = [name for name in wanted if name not in ids]
    if missing:
        left = [name for name in ids if name not in wanted]
        closest = [(name, get_close_matches(name, left, n=1, cutoff=0.)) for name in missing[:3]]
        described = ', '.join(repr(name) + (f' (the closest is {match[0]!r})' if match else '')
                              for name, match in closest)
        of_coco = wanted == list(mmdet.datasets.CocoDataset.METAINFO['classes'])
        raise ValueError(
            f'{where}: {len(missing)} of the {len(wanted)} names in classes are not among the categories of the file: '
            f'{described}{", …" if len(missing) > 3 else ""}. The file has {len(ids)}: '
            f'{", ".join(map(repr, list(ids)[:20]))}{", …" if len(ids) > 20 else ""}. '
            + ('These are the names of COCO, the default where metainfo gives none. ' if of_coco else '')
            + 'Give the names of the file in metainfo.classes of the train, val and test data sets, or add the '
            'missing categories to the file (a category may have no boxes)')
    used = {name: [id_ for id_ in ids[name] if boxes[id_]] for name in wanted}
    for name, of_name in used.items():
        if len(of_name) > 1:
            raise ValueError(f'{where}: the boxes of {name!r} belong to {len(of_name)} categories of that name, with '
                             f'the ids {of_name}; give these boxes one category_id, or the categories other names')
    return [(used[name] or ids[name])[0] for name in wanted]


def _boxes_and_names(annotations: dict[str, Any]) -> tuple[Counter, dict[int, str]]:
    """The number of boxes and the name of each category, by its id."""
    boxes = Counter(annotation['category_id'] for annotation in annotations.get('annotations', []))
    return boxes, {category['id']: _comparable(category['name']) for category in annotations.get('categories', [])}


class _AnnotationError(ValueError):
    pass


def _check_annotation(annotation: dict[str, Any], where: str) -> None:
    bbox, id_ = annotation.get('bbox', [0, 0, 0, 0]), annotation.get('id')
    if not (isinstance(bbox, list) and len(bbox) == 4
            and all(isinstance(value, (int, float)) and math.isfinite(value) for value in bbox)):
        raise _AnnotationError(f'{where}: the bbox of annotation {id_!r} is {bbox!r}, which is not four numbers; write '
                               'x, y, width and height in pixels, or remove the annotation')
    for key in ('iscrowd', 'ignore'):  # the string '0' would count as true, and its box would not be learned
        if (annotation.get(key) or 0) not in (0, 1):
            raise _AnnotationError(f'{where}: annotation {id_!r} has {key}={annotation[key]!r}, which is neither 0 nor '
                                   '1; write one of these, without quotation marks')


def read_coco(path: str, where: str) -> COCO:
    """Read annotations in COCO's format, from UTF-8 whatever the locale.

    A box without ``iscrowd`` is not of a crowd; a box whose ``area`` is absent or no positive number gets its width
    times its height. A value that is null counts as absent. An outline that is not in a list of outlines, as VIA
    writes it, is put into one. The backslashes that Windows writes into the names of pictures become slashes.

    Args:
        path: a local file.
        where: name of the file, for the message.

    Raises:
        ValueError: the file is not JSON, or not in COCO's format; it has no images; images, categories or boxes share
            an id; the ids of images or categories are numbers and text; a box is not four numbers; boxes belong to
            categories that are not in the file, or none of them to an image of the file.
    """
    coco = COCO()
    try:
        with open(path, encoding='utf-8-sig') as file:  # some editors begin with a byte order mark
            coco.dataset = json.load(file)
        for annotation in coco.dataset.get('annotations', []):
            for key in ('iscrowd', 'segmentation'):
                if key in annotation and annotation[key] is None:
                    del annotation[key]
            annotation.setdefault('iscrowd', 0)
            _check_annotation(annotation, where)
            outline = annotation.get('segmentation')
            if isinstance(outline, list) and outline and isinstance(outline[0], (int, float)):
                annotation['segmentation'] = [outline]
            area = annotation.get('area')
            # MMDetection trains on no box with an area of 0, and COCOeval takes the size of an object from its area.
            if 'bbox' in annotation and not (isinstance(area, (int, float)) and 0 < area < math.inf):
                annotation['area'] = annotation['bbox'][2] * annotation['bbox'][3]
        for image in coco.dataset.get('images', []):
            if isinstance(image.get('file_name'), str):
                image['file_name'] = with_slashes(image['file_name'])
        coco.createIndex()
        boxes, names = _boxes_and_names(coco.dataset)
        images = [image['id'] for image in coco.dataset['images']]
        categories = {(category['id'], category['name']) for category in coco.dataset['categories']}
    except _AnnotationError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f'{where} is not a JSON file in the format of COCO instances: '
                         f'{type(error).__name__}: {error}') from error
    if not images:
        raise ValueError(f'{where} has no images; give the file of a split that has some')
    for what, ids in (('images', images), ('categories', [*names])):  # COCOeval sorts them
        texts, numbers = ([id_ for id_ in ids if isinstance(id_, str) == is_text] for is_text in (True, False))
        if texts and numbers:
            raise ValueError(f'{where}: the ids of the {what} are numbers and text, such as {numbers[0]!r} and '
                             f'{texts[0]!r}; write all of them as numbers, also where boxes name them')
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    for what, count, different in (('images', len(images), len(coco.imgs)),
                                   ('categories', len(categories), len(names)),
                                   ('annotations', boxes.total(), len(coco.anns))):
        if different < count:
            raise ValueError(f'{where}: the {count} {what} have {different} different ids, so that some would '
                             'replace others; give each an id of its own')
    if boxes and not coco.imgs.keys() & coco.imgToAnns.keys():
        raise ValueError(f'{where}: none of the {boxes.total()} boxes belongs to an image of the file: the first box '
                         f'has image_id={next(iter(coco.imgToAnns))!r}, the first image has id={images[0]!r}; '
                         'give boxes and images the same ids, of the same type')
    unlisted = sorted(map(repr, boxes.keys() - names.keys()))
    if unlisted:
        count = sum(boxes[id_] for id_ in boxes.keys() - names.keys())
        raise ValueError(f'{where}: {count} of {boxes.total()} boxes have a category_id that is not among the '
                         f'categories of the file ({", ".join(unlisted[:5])}); add the categories, or remove the boxes')
    return coco


class UnloadablePictureError(ValueError):
    """A picture cannot be loaded or transformed; the message names the file.

    PyTorch raises the error of a worker process again with the worker's traceback in its message, which is left out.
    """

    def __str__(self) -> str:
        return super().__str__().rpartition(f'{type(self).__name__}: ')[2].strip()


@DATASETS.register_module(force=True)
class CocoDataset(mmdet.datasets.CocoDataset):
    """MMDetection's ``CocoDataset``, with labels by name, and errors that name the file.

    The arguments are those of MMDetection's class. The log says which names, boxes and pictures are left out.

    Raises:
        ValueError: as :func:`class_names`, :func:`read_coco` and :func:`category_ids`.
    """

    @classmethod
    def _load_metainfo(cls, metainfo: Any = None) -> dict[str, Any]:
        loaded = super()._load_metainfo(metainfo)
        if 'classes' in loaded:
            loaded['classes'] = class_names(loaded['classes'], cls.__name__)
        return loaded

    def COCOAPI(self, path: str) -> COCO:  # noqa: N802 (MMDetection's name)
        """The annotations, whose ``get_cat_ids`` returns the categories in the order of ``classes``."""
        coco = read_coco(path, self.ann_file)
        unsized = [image for image in coco.dataset['images'] if not all(
            isinstance(image.get(side), (int, float)) and image[side] > 0 for side in ('width', 'height'))]
        if unsized:
            raise ValueError(f'{self.ann_file}: {len(unsized)} of {len(coco.imgs)} pictures have no size, of which '
                             f'{unsized[0].get("file_name")} with width={unsized[0].get("width")!r} and '
                             f'height={unsized[0].get("height")!r} is the first; write the width and the height of '
                             'each picture in pixels into the file')
        ids = category_ids(coco.dataset, self.metainfo['classes'], self.ann_file)
        boxes, names = _boxes_and_names(coco.dataset)
        left_out = [id_ for id_ in names if id_ not in ids]
        if left_out:
            print_log(f'{self.ann_file}: classes leaves out '
                      + ', '.join(f'{names[id_]!r} ({counted(boxes[id_], "box", "boxes")})' for id_ in left_out),
                      logger='current', level=logging.WARNING if any(boxes[id_] for id_ in left_out) else logging.INFO)
        if [id_ for id_ in names if id_ in ids] != ids:
            print_log(f'{self.ann_file}: the categories have another order than classes; each label is the class of '
                      'the same name. MMDetection itself takes the order of the file: weights that it trained on '
                      'this file have the classes in another order', logger='current', level=logging.WARNING)
        self._boxes = sum(boxes[id_] for id_ in ids)
        coco.get_cat_ids = lambda cat_names: ids
        return coco

    def load_data_list(self) -> list[dict]:
        """Read the annotations, and log how many of the boxes are left out or reach beyond their picture."""
        try:
            pictures = super().load_data_list()
        except (KeyError, TypeError) as error:
            raise ValueError(f'{self.ann_file} is not in the format of COCO instances: a value of an image or a box is '
                             f'missing or wrong: {error}') from error
        used = sum(len(picture['instances']) for picture in pictures)
        if used < self._boxes:
            print_log(f'{self.ann_file}: {self._boxes - used} of {self._boxes} boxes are left out: they lie outside '
                      'their picture, are less than a pixel wide or high, are marked ignore, or belong to no image of '
                      'the file' + ('; in the metrics, those of the first two kinds count as missed' if self.test_mode
                                    else ''), logger='current', level=logging.WARNING)
        beyond = [picture['img_path'] for picture in pictures for instance in picture['instances']
                  if min(instance['bbox'][:2]) < -1 or instance['bbox'][2] > picture['width'] + 1
                  or instance['bbox'][3] > picture['height'] + 1]  # a pixel may be rounding
        if beyond:
            print_log(f'{self.ann_file}: {len(beyond)} of {self._boxes} boxes reach beyond their picture, the first of '
                      f'them in {beyond[0]}; the metrics compare them as they are with detections, which end at the '
                      'edge; make sure that each bbox is x, y, width, height in pixels', logger='current',
                      level=logging.WARNING)
        twice = [picture['img_path'] for picture in pictures for _, count in Counter(
            (instance['bbox_label'], *instance['bbox']) for instance in picture['instances']).items() if count > 1]
        if twice:
            print_log(f'{self.ann_file}: {len(twice)} of {self._boxes} boxes are given twice, with the same class, the '
                      f'first of them in {twice[0]}; in the metrics, a detector misses one of the two',
                      logger='current', level=logging.WARNING)
        paths = Counter(picture['img_path'] for picture in pictures)
        if len(paths) < len(pictures):
            print_log(f'{self.ann_file}: {len(pictures) - len(paths)} of {len(pictures)} pictures are given twice, '
                      f'with different ids, the first of them {paths.most_common(1)[0][0]}; the boxes of one entry '
                      'are background in the other', logger='current', level=logging.WARNING)
        return pictures

    def filter_data(self) -> list[dict]:
        """Leave out pictures as ``filter_cfg`` says, and log how many."""
        kept = super().filter_data()
        if len(kept) < len(self.data_list):
            print_log(f'{self.ann_file}: {len(self.data_list) - len(kept)} of {len(self.data_list)} pictures are left '
                      f'out by filter_cfg={dict(self.filter_cfg)}', logger='current')
        return kept

    def prepare_data(self, idx: int) -> Any:
        """The pipeline's result for a picture; an error names the picture's file."""
        try:
            return super().prepare_data(idx)
        except Exception as error:
            path = self.get_data_info(idx)['img_path']
            raise UnloadablePictureError(
                f'{path} cannot be loaded or transformed: {reason(error)}') from error


@METRICS.register_module(force=True)
class CocoMetric(mmdet.evaluation.CocoMetric):
    """MMDetection's ``CocoMetric``, with labels by name.

    The arguments are those of MMDetection's class.

    Raises:
        ValueError: as :func:`read_coco`, and at the evaluation as :func:`category_ids`.
    """

    def __init__(self, ann_file: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(None, *args, **kwargs)
        self.ann_file = ann_file
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = read_coco(path, ann_file)
            # COCOeval writes the id of a matched box into an array in which 0 means that no box is matched: the
            # detection of a box with the id 0 would be wrong, and an id that is text would be an error.
            for number, annotation in enumerate(self._coco_api.dataset.get('annotations', []), start=1):
                annotation['id'] = number
                # COCOeval overwrites what `ignore` says by `iscrowd`: detections there are neither right nor wrong.
                annotation['iscrowd'] = annotation['iscrowd'] or annotation.get('ignore') or 0
            self._coco_api.anns = {annotation['id']: annotation for annotation in self._coco_api.anns.values()}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """COCO's metrics."""
        if self.ann_file is not None:
            ids = category_ids(self._coco_api.dataset, self.dataset_meta['classes'], self.ann_file)
            # COCOeval sorts its categories by id, and MMDetection's `classwise` names its results by self.cat_ids:
            # labels in the order of the ids keep names and results together.
            self.cat_ids = sorted(ids)
            order = np.argsort(np.argsort(ids))
            results = [(truth, {**found, 'labels': order[found['labels']]}) for truth, found in results]
        return super().compute_metrics(results)
