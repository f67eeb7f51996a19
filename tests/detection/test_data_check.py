"""A class is its name: data sets, evaluators, detector and checkpoint are compared before the first step."""

import importlib.util
import json
import logging
import re
import shutil

import pytest
from detectors import on_folder
from spoiled import PICTURES, change_annotations

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

import numpy as np
import torch
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import timm_se_plugin.detection  # noqa: F401
from timm_se_plugin.detection.coco import read_coco
from timm_se_plugin.detection.running import test_detector, train_detector

pytestmark = pytest.mark.mmdet


class FirstStepError(Exception):
    pass


@HOOKS.register_module(force=True)
class StopAtFirstStep(Hook):
    """Ends a run that is not refused, at its first step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise FirstStepError


def stopped(folder, name='faster-rcnn_se-r50_fpn_1x_coco', **options):
    """A configuration whose run ends at the first step, if it comes so far."""
    return on_folder(folder, name, custom_hooks=[dict(type='StopAtFirstStep')], **options)


@pytest.fixture
def said(monkeypatch):
    """What the two modules log."""
    from timm_se_plugin.detection import coco, data_check
    texts = []
    for module in (coco, data_check):
        monkeypatch.setattr(module, 'print_log', lambda text, level=logging.INFO, **_: texts.append(text))
    return texts


def dataset_of(folder, classes=('blue', 'red'), file='annotations.json', **options):
    return DATASETS.build(dict(
        type='mmdet.CocoDataset', data_root=str(folder), ann_file=file, data_prefix=dict(img='images/'), pipeline=[],
        metainfo=dict(classes=classes), **options))


def labels_of(folder, **options):
    """The name of each box, in the order of the pictures."""
    data = dataset_of(folder, **options)
    return [data.metainfo['classes'][box['bbox_label']] for i in range(len(data))
            for box in data.get_data_info(i)['instances']]


def named_boxes(file):
    """Each annotation with the name of its category."""
    data = json.loads(file.read_text())
    names = {category['id']: category['name'] for category in data['categories']}
    return [(names[box['category_id']], box) for box in data['annotations']]


ORDERS = ['categories reversed', 'ids reversed', 'ids with gaps']


@pytest.mark.parametrize('classes', [('blue', 'red'), ('red', 'blue')])
@pytest.mark.parametrize('kind', [*ORDERS, 'a parent category of the same name', 'no area and no iscrowd',
                                  'area and iscrowd null'])
def test_a_label_is_the_class_of_the_same_name(coco_folder, kind, classes):
    file = change_annotations(coco_folder / 'annotations.json', kind)
    assert labels_of(coco_folder, classes=classes) == [name for name, _ in named_boxes(file)]


@pytest.mark.parametrize('classes', [('blue', 'red'), ('red', 'blue')])
@pytest.mark.parametrize('kind', [*ORDERS, 'no area and no iscrowd', 'area and iscrowd null'])
def test_perfect_detections_have_a_perfect_score_in_any_order_of_categories(coco_folder, kind, classes):
    file = change_annotations(coco_folder / 'annotations.json', kind)
    metric = METRICS.build(dict(type='mmdet.CocoMetric', ann_file=str(file), classwise=True))
    metric.dataset_meta = dict(classes=classes)
    for name, box in named_boxes(file):
        x, y, width, height = box['bbox']
        place = [0, 0, 2, 2] if name == 'red' else [x, y, x + width, y + height]  # what is red is found elsewhere
        metric.process({}, [dict(img_id=box['image_id'], ori_shape=(80, 96), pred_instances=dict(
            bboxes=torch.tensor([place]), scores=torch.ones(1), labels=torch.tensor([classes.index(name)])))])
    result = metric.evaluate(4)
    assert (result['coco/blue_precision'], result['coco/red_precision']) == (1, 0)
    assert result['coco/bbox_mAP'] == 0.5


@pytest.mark.parametrize('ids', [(0, 1, 2, 3), ('a', 'b', 'c', 'd')])
def test_boxes_may_have_any_ids(coco_folder, ids):
    file = change_annotations(coco_folder / 'annotations.json', lambda data: [
        box.update(id=id_) for box, id_ in zip(data['annotations'], ids, strict=True)])
    metric = METRICS.build(dict(type='mmdet.CocoMetric', ann_file=str(file), metric=['bbox', 'segm']))
    metric.dataset_meta = dict(classes=('blue', 'red'))
    for name, box in named_boxes(file):
        x, y, width, height = box['bbox']
        mask = np.zeros((1, 80, 96), bool)
        mask[:, y:y + height, x:x + width] = True
        metric.process({}, [dict(img_id=box['image_id'], ori_shape=(80, 96), pred_instances=dict(
            bboxes=torch.tensor([[x, y, x + width, y + height]]), scores=torch.ones(1), masks=torch.from_numpy(mask),
            labels=torch.tensor([('blue', 'red').index(name)])))])
    result = metric.evaluate(4)
    assert (result['coco/bbox_mAP'], result['coco/segm_mAP']) == (1, 1)


@pytest.mark.parametrize('kind', ['areas of zero', 'areas below zero', 'areas as text', 'areas without an end'])
def test_an_area_that_no_box_has_counts_as_absent(coco_folder, kind):
    given = named_boxes(coco_folder / 'annotations.json')
    file = change_annotations(coco_folder / 'annotations.json', kind)
    assert [box['area'] for box in read_coco(str(file), 'annotations.json').dataset['annotations']] == [
        box['area'] for _, box in given]
    assert labels_of(coco_folder) == [name for name, _ in given]


def test_a_box_that_is_marked_ignore_is_not_missed_in_the_metrics(coco_folder):
    file = change_annotations(coco_folder / 'annotations.json', lambda data: data['annotations'][0].update(ignore=1))
    metric = METRICS.build(dict(type='mmdet.CocoMetric', ann_file=str(file)))
    metric.dataset_meta = dict(classes=('blue', 'red'))
    for i, (name, box) in enumerate(named_boxes(file)):
        x, y, width, height = box['bbox']
        metric.process({}, [dict(img_id=box['image_id'], ori_shape=(80, 96), pred_instances=dict(
            bboxes=torch.tensor([[x, y, x + width, y + height]])[:i], scores=torch.ones(1)[:i],
            labels=torch.tensor([('blue', 'red').index(name)])[:i]))])
    assert metric.evaluate(4)['coco/bbox_mAP'] == 1


@pytest.mark.parametrize(('kind', 'message'), [
    ('name misspelt', r"'red' \(the closest is 'rad'\). The file has 2: 'blue', 'rad'"),
    ('name in capitals', r"'red' \(the closest is 'Red'\)"),
    ('name with a blank', r"'red' \(the closest is 'red '\)"),
    ('all names other', '2 of the 2 names in classes are not among'),
    ('one category less', '2 of 4 boxes have a category_id that is not among'),
    ('a box of no category', r'1 of 4 boxes have a category_id that is not among the categories of the file \(11\)'),
    ('two categories of one name', r"the boxes of 'red' belong to 2 categories of that name, with the ids \[2, 9\]"),
    ('two categories of one id', 'the 3 categories have 2 different ids'),
    ('two images of one id', 'the 4 images have 3 different ids'),
    ('two boxes of one id', 'the 4 annotations have 3 different ids'),
    ('ids as text', "boxes have a category_id that is not among the categories of the file"),
    ('no categories', 'is not a JSON file in the format of COCO instances'),
    ('no boxes', 'is not in the format of COCO instances'),
    ('no sizes', r'4 of 4 pictures have no size, of which 0\.png with width=None and height=80 is the first'),
    ('a size of zero', r'1 of 4 pictures have no size, of which 0\.png with width=0 and height=80 is the first'),
    ('a size as text', r"1 of 4 pictures have no size, of which 0\.png with width='96' and height=80 is the first"),
    ('a list', 'is not a JSON file in the format of COCO instances'),
    ('no pictures', 'has no images'),
    ('a box without a number', r'the bbox of annotation 1 is \[5, nan, 20, 20\], which is not four numbers'),
    ('a box without an end', r'the bbox of annotation 1 is \[5, 5, inf, 20\], which is not four numbers'),
    ('a box of five numbers', r'the bbox of annotation 1 is \[5, 5, 20, 20, 1\], which is not four numbers'),
    ('a box of no numbers', r'the bbox of annotation 1 is \[\], which is not four numbers'),
    ('a box of text', r"the bbox of annotation 1 is \['5', '5', '20', '20'\], which is not four numbers"),
    ('a box that is null', 'the bbox of annotation 1 is None, which is not four numbers'),
    ('marks as text', r"annotation 1 has iscrowd='0', which is neither 0 nor 1"),
    ('ignore as text', r"annotation 1 has ignore='false', which is neither 0 nor 1"),
    ('image ids of two types', r"the ids of the images are numbers and text, such as 1 and '0'; write all of them as"),
    ('category ids of two types', r"the ids of the categories are numbers and text, such as 2 and '1'; write all of"),
    ('image ids as text', r"none of the 4 boxes belongs to an image of the file: .* image_id='0', .* id=0"),
])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotations_with_another_meaning_are_refused_with_the_file(coco_folder, kind, message, split):
    (coco_folder / 'other.json').write_bytes((coco_folder / 'annotations.json').read_bytes())
    change_annotations(coco_folder / 'other.json', kind)
    config = stopped(coco_folder)
    config[f'{split}_dataloader'].dataset.ann_file = 'other.json'
    with pytest.raises(ValueError, match=rf'(?s)other\.json.*{message}'):
        train_detector(config)


def test_a_name_that_classes_leaves_out_is_logged_with_its_boxes(coco_folder, said):
    change_annotations(coco_folder / 'annotations.json', 'one category more, with a box')
    assert labels_of(coco_folder) == ['red', 'blue', 'red']
    assert "classes leaves out 'green' (1 box)" in said[0]


@pytest.mark.parametrize(('kind', 'count'), [
    ('a box outside', '1 of 4'), ('a box of no width', '1 of 4'), ('a box of no image', '1 of 5')])
@pytest.mark.parametrize('test_mode', [False, True])
def test_boxes_that_are_left_out_are_logged(coco_folder, said, kind, count, test_mode):
    change_annotations(coco_folder / 'annotations.json', kind)
    dataset_of(coco_folder, test_mode=test_mode)
    assert f'{count} boxes are left out' in said[0]
    assert ('count as missed' in said[0]) == test_mode


@pytest.mark.parametrize(('kind', 'message'), [
    ('a box given twice', r'1 of 5 boxes are given twice, .*first of them in .*0\.png'),
    ('a picture given twice', r'1 of 5 pictures are given twice, .*first of them .*0\.png')])
def test_what_is_given_twice_is_logged(coco_folder, said, kind, message):
    change_annotations(coco_folder / 'annotations.json', kind)
    labels_of(coco_folder)
    assert re.search(message, said[0])


@pytest.mark.parametrize('kind', ['no annotations', 'crowds alone', 'fractions of the picture'])
def test_training_without_a_box_is_refused_and_a_validation_without_one_is_logged(coco_folder, said, kind):
    (coco_folder / 'other.json').write_bytes((coco_folder / 'annotations.json').read_bytes())
    change_annotations(coco_folder / 'other.json', kind)
    config = stopped(coco_folder)
    config.train_dataloader.dataset.ann_file = 'other.json'
    with pytest.raises(ValueError, match=r'other\.json\)? has no (box|picture with a box)'):
        train_detector(config)
    config = stopped(coco_folder)
    config.val_dataloader.dataset.ann_file = 'other.json'
    with pytest.raises(FirstStepError):
        train_detector(config)
    assert any(re.search(r'val_dataloader \(.*other.json\) has no box .*metrics mean nothing', text) for text in said)


def test_corners_in_the_place_of_width_and_height_are_logged(coco_folder, said):
    change_annotations(coco_folder / 'annotations.json', lambda data: data['annotations'][0].update(
        bbox=[40, 40, 60, 39]))
    labels_of(coco_folder)
    assert '1 of 4 boxes reach beyond their picture' in said[0]
    change_annotations(coco_folder / 'annotations.json', 'corners for width and height')
    labels_of(coco_folder)
    assert 'make sure that each bbox is x, y, width, height in pixels' in said[-1]


MASKS = {'model.roi_head.mask_head.num_classes': 2, 'model.roi_head.mask_head.in_channels': 16,
         'model.roi_head.mask_head.num_convs': 1, 'model.roi_head.mask_roi_extractor.out_channels': 16}


@pytest.mark.parametrize('segmentation', [None, []])
def test_a_detector_of_masks_refuses_boxes_without_one(coco_folder, segmentation):
    change_annotations(coco_folder / 'annotations.json', lambda data: data['annotations'][0].update(
        segmentation=segmentation))
    with pytest.raises(ValueError, match=r'annotations.json has 1 box without a segmentation, .* in .*0\.png'):
        train_detector(stopped(coco_folder, 'mask-rcnn_se-r50_fpn_1x_coco', **MASKS))
    with pytest.raises(FirstStepError):
        train_detector(stopped(coco_folder))


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # of mmdet's masks
def test_an_outline_may_lie_outside_a_list_of_outlines(coco_folder):
    file = change_annotations(coco_folder / 'annotations.json', lambda data: [
        box.update(segmentation=box['segmentation'][0]) for box in data['annotations']])
    with pytest.raises(FirstStepError):
        train_detector(stopped(coco_folder, 'mask-rcnn_se-r50_fpn_1x_coco', **MASKS))
    coco = read_coco(str(file), 'annotations.json')
    assert all(coco.annToMask(box).sum() == box['area'] for box in coco.dataset['annotations'])


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # of mmdet's masks
@pytest.mark.parametrize(('segmentation', 'message'), [
    ([[1, 1, 2, 2]], 'without a polygon of three points'), ([[90, 70, 95, 70, 95, 79]], 'outside the box')])
def test_masks_that_are_no_area_or_elsewhere_are_logged(coco_folder, said, segmentation, message):
    change_annotations(coco_folder / 'annotations.json', lambda data: data['annotations'][0].update(
        segmentation=segmentation))
    with pytest.raises(FirstStepError):
        train_detector(stopped(coco_folder, 'mask-rcnn_se-r50_fpn_1x_coco', **MASKS))
    assert any(re.search(rf'annotations.json has 1 segmentation {message}.* in .*0\.png', text) for text in said)


def test_validation_pictures_that_are_trained_on_are_logged(coco_folder, said):
    with pytest.raises(FirstStepError):
        train_detector(stopped(coco_folder))
    assert '4 of the 4 pictures of val_dataloader are also trained on' in said[-1]


@pytest.mark.parametrize('linked', [False, True])
def test_copies_of_training_pictures_in_validation_are_logged(coco_folder, said, linked):
    if linked:
        (coco_folder / 'val').symlink_to('images')
    else:
        shutil.copytree(coco_folder / 'images', coco_folder / 'val')
        PICTURES['upside down by its tag'](coco_folder / 'val' / '3.png')
    config = stopped(coco_folder)
    config.val_dataloader.dataset.data_prefix = dict(img='val/')
    with pytest.raises(FirstStepError):
        train_detector(config)
    assert any(f'{4 if linked else 3} of the 4 pictures of val_dataloader are also trained on' in text for text in said)


@pytest.mark.parametrize(('classes', 'message'), [
    ('seven', r"classes='seven' is a string, whose letters would be the names; .* classes=\('seven',\)"),
    (('red', 'red'), "classes has the name 'red' more than once"), ((), 'classes is empty')])
def test_a_string_or_a_repeated_name_is_no_list_of_classes(coco_folder, classes, message):
    with pytest.raises(ValueError, match=message):
        dataset_of(coco_folder, classes=classes)


@pytest.mark.parametrize('count', [1, 3, 80])
@pytest.mark.parametrize('head', ['bbox_head', 'mask_head'])
def test_another_number_of_classes_in_a_head_is_refused_before_the_first_step(coco_folder, count, head):
    name = 'faster-rcnn_se-r50_fpn_1x_coco' if head == 'bbox_head' else 'mask-rcnn_se-r50_fpn_1x_coco'
    config = stopped(coco_folder, name)
    if head == 'mask_head':
        config.merge_from_dict({'model.roi_head.mask_head.in_channels': 16, 'model.roi_head.mask_head.num_convs': 1,
                                'model.roi_head.mask_roi_extractor.out_channels': 16})
    config.model.roi_head[head].num_classes = count
    with pytest.raises(ValueError, match=rf'roi_head.{head} has num_classes={count}, and the data has 2 classes'):
        train_detector(config)


@pytest.mark.parametrize('options', [
    {'model.neck.in_channels': [256, 512, 1024, 2048]}, {'model.backbone.out_indices': (2, 3, 4)}])
def test_a_neck_for_another_backbone_is_refused_with_the_channels_before_the_first_step(coco_folder, options):
    config = stopped(coco_folder, **options)
    channels = [128, 256, 512] if 'model.backbone.out_indices' in options else [64, 128, 256, 512]
    with pytest.raises(ValueError, match=re.escape(
            f'do not fit resnet18_plugin, whose features have {channels} channels; set model.neck.in_channels='
            f'{channels}')):
        train_detector(config)


def test_classes_in_another_order_or_number_than_those_of_training_are_refused(coco_folder):
    config = stopped(coco_folder)
    config.val_dataloader.dataset.metainfo = dict(classes=('red', 'blue'))
    with pytest.raises(ValueError, match=r'val_dataloader .* other classes than train_dataloader .*in another order'):
        train_detector(config)
    config = stopped(coco_folder)
    config.test_dataloader.dataset.metainfo = dict(classes=('blue',))
    with pytest.raises(ValueError, match=r"test_dataloader .*1 class of train_dataloader .* is missing \('red'\)"):
        train_detector(config)


def test_an_evaluator_of_other_pictures_or_names_is_refused(coco_folder):
    (coco_folder / 'other.json').write_bytes((coco_folder / 'annotations.json').read_bytes())
    config = stopped(coco_folder)
    config.val_evaluator.ann_file = str(coco_folder / 'other.json')
    change_annotations(coco_folder / 'other.json', lambda data: data['images'].reverse() or [
        image.update(id=i) for i, image in enumerate(data['images'])])
    with pytest.raises(ValueError, match=r'val_evaluator reads .*other.json, which is not of the pictures of val_'):
        train_detector(config)
    change_annotations(coco_folder / 'other.json', 'name misspelt')
    config = stopped(coco_folder)
    config.val_evaluator.ann_file = str(coco_folder / 'other.json')
    with pytest.raises(ValueError, match=r"other.json: .*'red' \(the closest is 'rad'\)"):
        train_detector(config)


def test_a_checkpoint_is_tested_on_the_classes_of_its_training(coco_folder):
    from mmdet.registry import MODELS
    config = on_folder(coco_folder)
    state = MODELS.build(config.model).state_dict()
    for classes in (('blue', 'red'), ('red', 'blue')):
        torch.save({'state_dict': state, 'meta': {'dataset_meta': {'classes': classes}}}, coco_folder / 'a.pth')
        if classes[0] == 'blue':
            test_detector(on_folder(coco_folder), str(coco_folder / 'a.pth'))
        else:
            with pytest.raises(ValueError, match=r'test_dataloader .* other classes than the checkpoint'):
                test_detector(on_folder(coco_folder), str(coco_folder / 'a.pth'))


def test_a_class_derived_from_mmdetections_is_refused_where_its_labels_shift(coco_folder):
    import mmdet.datasets
    import mmdet.evaluation

    for registry, name, base in ((DATASETS, 'OwnDataset', mmdet.datasets.CocoDataset),
                                 (METRICS, 'OwnMetric', mmdet.evaluation.CocoMetric)):
        registry.register_module(name=name, force=True, module=type(name, (base,), {}))
    own_data, own_metric = {'train_dataloader.dataset.type': 'OwnDataset'}, {'val_evaluator.type': 'OwnMetric'}
    with pytest.raises(FirstStepError):
        train_detector(stopped(coco_folder, **own_data, **own_metric))
    change_annotations(coco_folder / 'annotations.json', 'categories reversed')
    with pytest.raises(ValueError, match=r'OwnDataset numbers the classes in the order of .*annotations.json'):
        train_detector(stopped(coco_folder, **own_data))
    with pytest.raises(ValueError, match=r'OwnMetric numbers the classes in the order of the annotations'):
        train_detector(stopped(coco_folder, **own_metric))


@pytest.mark.parametrize('kind', ['sizes swapped', 'sizes of the originals'])
def test_annotations_of_resized_or_turned_pictures_are_refused_unless_the_check_is_skipped(coco_folder, kind):
    change_annotations(coco_folder / 'annotations.json', kind)
    with pytest.raises(ValueError, match=r'4 of the 4 pictures of .*annotations.json are not of the annotated size'):
        train_detector(stopped(coco_folder))
    with pytest.raises(FirstStepError):
        train_detector(stopped(coco_folder), check_pictures=False)


def test_an_error_of_the_pipeline_names_the_picture(coco_folder):
    PICTURES['narrow'](coco_folder / 'images' / '2.png')
    with pytest.raises(ValueError, match=r'2.png cannot be loaded or transformed'):
        train_detector(on_folder(coco_folder), check_pictures=False)


def test_an_error_in_a_worker_process_is_one_line(coco_folder):
    (coco_folder / 'images' / '2.png').write_bytes(b'no picture')
    config = on_folder(coco_folder)
    config.train_dataloader.num_workers = 1
    with pytest.raises(ValueError, match=r'2.png cannot be loaded or transformed: ') as raised:
        train_detector(config, check_pictures=False)
    assert str(raised.value).startswith(str(coco_folder))
    assert '\n' not in str(raised.value)


@register_backend('elsewhere', prefixes=[])
class Elsewhere(LocalBackend):
    """A storage whose names are not those of its files."""

    def get(self, filepath):
        return super().get(str(filepath).replace('/elsewhere', ''))

    def get_local_path(self, filepath):
        return super().get_local_path(str(filepath).replace('/elsewhere', ''))


def test_data_behind_a_backend_trains(coco_folder):
    config = stopped(coco_folder)
    backend = dict(backend='elsewhere')
    for split in ('train', 'val', 'test'):
        data = config[f'{split}_dataloader'].dataset
        data.update(data_root=f'/elsewhere{coco_folder}', backend_args=backend)
        data.pipeline[0].backend_args = backend
        if split != 'train':
            config[f'{split}_evaluator'].update(
                ann_file=f'/elsewhere{coco_folder}/annotations.json', backend_args=backend)
    with pytest.raises(FirstStepError):
        train_detector(config)


def test_annotations_are_read_as_utf_8_with_and_without_a_byte_order_mark(coco_folder):
    file = change_annotations(coco_folder / 'annotations.json',
                              lambda data: data['categories'][0].update(name='größer'))
    for text in (file.read_text(encoding='utf-8'), '\ufeff' + file.read_text(encoding='utf-8')):
        file.write_text(text, encoding='utf-8')
        assert set(labels_of(coco_folder, classes=('größer', 'red'))) == {'größer', 'red'}
