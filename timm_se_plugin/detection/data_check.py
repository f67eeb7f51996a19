"""Checks before a run that its data sets, model and evaluators belong together."""

import filecmp
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmdet.datasets
import mmdet.evaluation
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmengine.evaluator import Evaluator
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from torch import nn

from ..files.counting import counted
from .coco import CocoDataset, CocoMetric, category_ids, class_names
from .picture_check import PictureFile, check_pictures, picture_files

__all__ = ['check_data']

_COMPARED = 1000  # the most pictures of a split whose content is compared with training pictures of the same name


def check_data(
        datasets: Mapping[str, Any], evaluators: Mapping[str, Evaluator], model: nn.Module,
        classes: Sequence[str] | None = None, pictures: bool = True,
) -> None:
    """Compare data sets with one another, their evaluators, the model and the picture files.

    Args:
        datasets: the data sets by the names of their splits (``'train'``, ``'val'``, ``'test'``).
        evaluators: the evaluators by the names of their splits.
        model: the detector.
        classes: classes of the checkpoint that the run begins with; None if the checkpoint may have other classes.
        pictures: whether to look at the picture files.

    Raises:
        ValueError: classes, numbers of classes, labels or pictures do not agree; the message says what to do.
        FileNotFoundError: pictures do not exist.
    """
    expected, whose = (None if classes is None else class_names(classes, 'the checkpoint')), 'the checkpoint'
    pictured: dict[tuple, PictureFile] = {}  # train and val sets may share pictures
    trained_on: dict[str, set[str]] = {}  # paths of the training pictures by file name
    for split, dataset in datasets.items():
        of_split: list[PictureFile] = []
        for base in _parts(dataset):
            where = f'{split}_dataloader ({getattr(base, "ann_file", "") or type(base).__name__})'
            of_split += picture_files(base) if pictures or split in evaluators else ()
            if getattr(base, 'metainfo', {}).get('classes') is not None:
                names = class_names(base.metainfo['classes'], where)
                if expected is None:
                    expected, whose = names, where
                _compare_classes(names, where, expected, whose)
                _check_heads(model, base, names)
                _check_order(base, names)
            _check_masks(base)
        _check_boxes(dataset, split)
        evaluator = evaluators.get(split)
        for metric in evaluator.metrics if expected and isinstance(evaluator, Evaluator) else ():
            if isinstance(metric, mmdet.evaluation.CocoMetric) and getattr(metric, '_coco_api', None) is not None:
                _check_metric(metric, f'{split}_evaluator', expected, of_split, f'{split}_dataloader')
        if split == 'train':
            for picture in of_split:
                trained_on.setdefault(Path(picture.path).name, set()).add(picture.path)
        elif shared := sum(_is_one_of(picture.path, trained_on.get(Path(picture.path).name, set()), i < _COMPARED)
                           for i, picture in enumerate(of_split)):
            print_log(f'{shared} of the {len(of_split)} pictures of {split}_dataloader are also trained on, so that '
                      'the metrics do not say how the detector does on new pictures', logger='current',
                      level=logging.WARNING)
        for picture in of_split:
            pictured.setdefault((picture.path, picture.size), picture)
    if pictures:
        check_pictures(list(pictured.values()))


def _is_one_of(path: str, others: set[str], compare: bool) -> bool:
    if path in others or not compare or len(others) > 10:  # a name like image.png is in many folders
        return path in others
    return any(os.path.isfile(each) and os.path.isfile(path) and filecmp.cmp(path, each, shallow=False)
               for each in others)


def _compare_classes(names: Sequence[str], where: str, expected: Sequence[str], whose: str) -> None:
    """Compare two lists of classes, in which the position of a class is its label.

    Raises:
        ValueError: the lists differ; the message names the classes in which they do.
    """
    if tuple(names) == tuple(expected):
        return
    lacking, other = ([name for name in a if name not in b] for a, b in ((expected, names), (names, expected)))
    parts = [f'{counted(len(found), *what)} ({", ".join(map(repr, found[:5]))}{", …" if len(found) > 5 else ""})'
             for found, what in (
                 (lacking, (f'class of {whose} is missing', f'classes of {whose} are missing')),
                 (other, ('class is not among them', 'classes are not among them'))) if found]
    raise ValueError(f'{where} has other classes than {whose}: '
                     + ('; '.join(parts) or f'the same names in another order, {tuple(names)} and {tuple(expected)}')
                     + '. A label is a position in this list; set the same metainfo.classes everywhere')


def _parts(dataset: Any) -> Iterator[Any]:
    """The data sets inside a concatenation or a wrapper such as RepeatDataset; for another data set, itself."""
    parts = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    for part in parts:
        yield from _parts(part)
    if not parts:
        yield dataset


def _check_heads(model: nn.Module, dataset: Any, names: tuple[str, ...]) -> None:
    if 'thing_classes' in dataset.metainfo or getattr(dataset, 'return_classes', False):
        return  # panoptic heads split the classes among themselves, and open-vocabulary heads do not count them
    for name, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        # The RPN only separates objects from background, a fused semantic head has classes of its own, and num_classes
        # of a timm backbone is ImageNet's. A detector itself has the number of one of its heads.
        if name and isinstance(count, int) and count != len(names) and not isinstance(module, FusedSemanticHead) and (
                not {'rpn_head', 'backbone'} & set(name.split('.'))):
            key = 'num_things_classes' if hasattr(module, 'num_things_classes') else 'num_classes'
            raise ValueError(
                f'{name} has num_classes={count}, and the data has {counted(len(names), "class", "classes")}; set '
                f'model.{name}.{key}={len(names)}, and likewise in the other heads of the detector')


def _check_boxes(dataset: Any, split: str) -> None:
    """Check that a split has boxes that are neither left out nor of a crowd."""
    parts = list(_parts(dataset))
    if all(isinstance(part, CocoDataset) for part in parts) and not any(
            not box['ignore_flag'] for part in parts for i in range(len(part))
            for box in part.get_data_info(i)['instances']):
        text = (f'{split}_dataloader ({", ".join(str(part.ann_file) for part in parts)}) has no box of the classes '
                'that is neither left out nor marked iscrowd, so that ')
        if split == 'train':
            raise ValueError(f'{text}nothing can be learned; give the annotations of the pictures')
        print_log(f'{text}its metrics mean nothing (COCO writes -1)', logger='current', level=logging.WARNING)


def _check_masks(dataset: Any) -> None:
    """Check the segmentations of a data set whose pipeline loads them."""
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    if not (isinstance(dataset, CocoDataset) and any(getattr(step, 'with_mask', False) for step in steps)):
        return
    lacking, thin, elsewhere = [], [], []
    for info in map(dataset.get_data_info, range(len(dataset))):
        for instance in info['instances']:
            mask = instance.get('mask')
            if mask is None:
                lacking.append(info['img_path'])
            elif isinstance(mask, list):
                polygons = [polygon for polygon in mask if len(polygon) >= 6]
                x, y = ([value for polygon in polygons for value in polygon[i::2]] for i in (0, 1))
                x1, y1, x2, y2 = instance['bbox']
                if not polygons:
                    thin.append(info['img_path'])
                elif min(x) > x2 or max(x) < x1 or min(y) > y2 or max(y) < y1:
                    elsewhere.append(info['img_path'])
    if lacking:
        raise ValueError(f'{dataset.ann_file} has {counted(len(lacking), "box", "boxes")} without a segmentation, from '
                         f'which the detector learns masks, the first of them in {lacking[0]}; add the segmentations, '
                         'remove the boxes, or train a detector without masks')
    for found, what in ((thin, 'without a polygon of three points, so that the box is not learned'),
                        (elsewhere, 'outside the box')):
        if found:
            print_log(f'{dataset.ann_file} has {counted(len(found), "segmentation")} {what}, the first of them in '
                      f'{found[0]}', logger='current', level=logging.WARNING)


def _check_order(dataset: Any, names: tuple[str, ...]) -> None:
    """Check the labels of a data set whose class inherits the loading of MMDetection's ``CocoDataset``."""
    inherited = mmdet.datasets.CocoDataset
    if isinstance(dataset, CocoDataset) or not isinstance(dataset, inherited) or (
            type(dataset).load_data_list is not inherited.load_data_list or dataset.COCOAPI is not inherited.COCOAPI):
        return
    with get_local_path(dataset.ann_file, backend_args=dataset.backend_args) as path:
        annotations = json.loads(Path(path).read_text(encoding='utf-8-sig'))
    if category_ids(annotations, names, dataset.ann_file) != list(dataset.cat_ids):
        raise ValueError(f'{type(dataset).__name__} numbers the classes in the order of {dataset.ann_file}, which is '
                         'not the order of classes; derive the class from timm_se_plugin.detection.CocoDataset, whose '
                         'labels are by name')


def _check_metric(metric: Any, evaluator: str, classes: Any, pictures: list[PictureFile], where: str) -> None:
    """Check that the annotations of an evaluator have the classes and the pictures of its data set."""
    coco, file = metric._coco_api, getattr(metric, 'ann_file', None) or f'the annotations of {evaluator}'
    ids = category_ids(coco.dataset, classes, file)
    if not isinstance(metric, CocoMetric) and coco.get_cat_ids(cat_names=classes) != ids:
        raise ValueError(f'{evaluator}: {type(metric).__name__} numbers the classes in the order of {file}, which is '
                         'not the order of classes; derive the class from timm_se_plugin.detection.CocoMetric, whose '
                         'labels are by name')
    other = [picture for picture in pictures if picture.image not in coco.imgs
             or Path(coco.imgs[picture.image]['file_name']).name != Path(picture.path).name]
    if other:
        named = coco.imgs.get(other[0].image, {}).get('file_name', 'no picture')
        raise ValueError(f'{evaluator} reads {file}, which is not of the pictures of {where}: image {other[0].image!r} '
                         f'is {other[0].path} in the data set and {named} for the evaluator; set {evaluator}.ann_file')
    if len(coco.imgs) > len(pictures):
        print_log(f'{evaluator}: {file} has {len(coco.imgs)} pictures, and {where} {len(pictures)} of them; the boxes '
                  'of the others count as missed', logger='current', level=logging.WARNING)
