"""A folder of a user's pictures and boxes, in the layouts in which people have them."""

import importlib.util
import json
import os
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

if importlib.util.find_spec('mmdet') is None:
    pytest.skip('needs the [mmdet] or the [onedl] extra', allow_module_level=True)

from PIL import Image

from timm_se_plugin.detection import CocoDataset
from timm_se_plugin.detection.data_folder import read_folder

pytestmark = pytest.mark.mmdet

SIZE = (96, 80)     # width and height of each picture
# Names of pictures, and for each of their boxes the class and x, y, width and height. Two splits share a name.
SPLITS = {
    'train': {'a': [('red', (10, 20, 30, 40))], 'b': [('blue', (0, 0, 96, 80)), ('red', (5, 6, 7, 8))], 'c': []},
    'val': {'a': [('blue', (48, 40, 24, 20))]},
    'test': {'d': [('red', (1, 2, 40, 50))]},
}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding='utf-8')


def picture(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size).save(path, **options)


def coco(split, prefix=''):
    names, annotations = list(split), []
    for name, boxes in split.items():
        annotations += [dict(id=len(annotations) + n, image_id=names.index(name), bbox=list(box), area=box[2] * box[3],
                             category_id=dict(red=3, blue=7)[label]) for n, (label, box) in enumerate(boxes, 1)]
    return dict(images=[dict(id=i, file_name=f'{prefix}{name}.jpg', width=SIZE[0], height=SIZE[1])
                        for i, name in enumerate(names)], annotations=annotations,
                categories=[dict(id=7, name='blue'), dict(id=3, name='red'), dict(id=0, name='things')])


def xml(name, boxes):
    objects = ''.join(f'<object><name>{label}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}'
                      f'</xmax><ymax>{y + h}</ymax></bndbox></object>' for label, (x, y, w, h) in boxes)
    return (f'<?xml version="1.0"?>\n<annotation><filename>{name}.jpg</filename><size><width>{SIZE[0]}</width><height>'
            f'{SIZE[1]}</height><depth>3</depth></size>{objects}</annotation>')


def labels(boxes):
    return ''.join(f'{["blue", "red"].index(label)} {(x + w / 2) / 96} {(y + h / 2) / 80} {w / 96} {h / 80}\n'
                   for label, (x, y, w, h) in boxes)


# Of each layout: the file of annotations of a split, and the folder of its pictures.
COCO = {
    'COCO': ('annotations/instances_{}2017.json', '{}2017'),
    'beside the folders': ('{}.json', '{}'),
    'Roboflow': ('{}/_annotations.coco.json', '{}'),
    'FiftyOne': ('{}/labels.json', '{}/data'),
    'folders of images': ('annotations/{}.json', 'images/{}'),
}
VOC = {'Roboflow': ('{}', '{}'), 'folders of annotations': ('annotations/{}', 'images/{}'),
       'folders in splits': ('{}/annotations', '{}/images')}
YOLO = {'Ultralytics': ('labels/{}', 'images/{}', 'images/{}'), 'Roboflow': ('{}/labels', '{}/images', '../{}/images'),
        'beside the pictures': ('{}', '{}', '{}')}


def save_coco(folder, layout='COCO'):
    file, pictures = COCO[layout]
    for name, split in SPLITS.items():
        write(folder / file.format(name), coco(split))
        for stem in split:
            picture(folder / pictures.format(name) / f'{stem}.jpg')
    return folder


def save_voc(folder, layout=''):
    annotations, pictures = VOC.get(layout, ('Annotations', 'JPEGImages'))
    for name, split in SPLITS.items():
        for stem, boxes in split.items():
            unique = stem if layout else f'{name}_{stem}'
            write(folder / annotations.format(name) / f'{unique}.xml', xml(unique, boxes))
            picture(folder / pictures.format(name) / f'{unique}.jpg')
        if not layout:
            write(folder / 'ImageSets' / 'Main' / f'{name}.txt', ''.join(f'{name}_{stem}\n' for stem in split))
    return folder


def save_yolo(folder, layout='Ultralytics'):
    text, pictures, named = YOLO[layout]
    for name, split in SPLITS.items():
        for stem, boxes in split.items():
            if boxes:
                write(folder / text.format(name) / f'{stem}.txt', labels(boxes))
            picture(folder / pictures.format(name) / f'{stem}.jpg')
    write(folder / 'data.yaml', 'names: [blue, red, things]\nnc: 3\n'
          + ''.join(f'{name}: {named.format(name)}\n' for name in SPLITS))
    return folder


def described(splits):
    """As SPLITS; checks that each picture exists."""
    found = {}
    for name, split in splits.items():
        content = json.loads(split.file.read_text())
        of_id = {category['id']: category['name'] for category in content['categories']}
        found[name] = {}
        for image in content['images']:
            assert (split.pictures / image['file_name']).is_file()
            assert {name, f'{name}2017'} & {*(split.pictures / image['file_name']).parts} or name in image['file_name']
            assert (image['width'], image['height']) == SIZE
            found[name][Path(image['file_name']).stem.removeprefix(f'{name}_')] = [
                (of_id[box['category_id']], tuple(box['bbox'])) for box in content['annotations']
                if box['image_id'] == image['id']]
    return found


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize(('save', 'layout'), [
    *((save_coco, layout) for layout in COCO), (save_voc, ''), *((save_voc, layout) for layout in VOC),
    *((save_yolo, layout) for layout in YOLO)])
def test_pictures_and_boxes_of_each_split_are_found(tmp_path, save, layout):
    folder = save(tmp_path / 'mine', layout)
    before = listing(folder)
    splits, classes = read_folder(folder, tmp_path / 'run' / 'annotations')
    assert described(splits) == SPLITS
    assert classes == ('blue', 'red')   # 'things' has no box
    assert listing(folder) == before    # nothing is written into it
    assert {split.file.is_relative_to(folder) for split in splits.values()} == {save is save_coco}


def test_paths_with_backslashes_of_windows_are_found(tmp_path):
    data = save_coco(tmp_path / 'coco', 'beside the folders')
    for name in SPLITS:
        write(data / f'{name}.json', coco(SPLITS[name], f'{name}\\'))
    for split in read_folder(data, tmp_path / 'run0')[0].values():
        pictures = CocoDataset(ann_file=str(split.file), data_prefix={'img': f'{split.pictures}/'}, metainfo={
            'classes': ('blue', 'red')}).load_data_list()
        assert all(Path(picture['img_path']).is_file() for picture in pictures)
    data = save_voc(tmp_path / 'voc', 'Roboflow')
    (data / 'train' / 'a.xml').unlink()
    write(data / 'train' / 'other.xml', xml(r'C:\pictures\a', SPLITS['train']['a']))
    assert described(read_folder(data, tmp_path / 'run1')[0]) == SPLITS
    data = save_yolo(tmp_path / 'yolo')
    write(data / 'train.txt', ''.join(f'.\\images\\train\\{name}.jpg\n' for name in SPLITS['train']))
    write(data / 'data.yaml', 'names: [blue, red]\ntrain: .\\train.txt\nval: images\\val\ntest: images\\test\n')
    assert described(read_folder(data, tmp_path / 'run2')[0]) == SPLITS


@pytest.mark.parametrize('save', [save_coco, save_voc, save_yolo])
def test_a_link_to_the_folder_above_is_not_followed(tmp_path, save, caplog):
    folder = save(tmp_path / 'mine')
    (folder / 'loop').symlink_to('.', target_is_directory=True)
    assert described(read_folder(folder, tmp_path / 'run')[0]) == SPLITS
    assert [record.getMessage() for record in caplog.records if record.levelname == 'WARNING'] == [
        f'{folder / "loop"} links to a folder that it lies in, and is not followed']


def test_instances_are_chosen_among_the_other_annotations_of_coco(tmp_path):
    folder = save_coco(tmp_path / 'mine')
    write(folder / 'annotations' / 'person_keypoints_train2017.json', coco(SPLITS['train']))
    write(folder / 'annotations' / 'captions_train2017.json', dict(images=[], annotations=[]))
    write(folder / 'notes.json', [1, 2])
    assert described(read_folder(folder, tmp_path / 'run')[0]) == SPLITS


def test_a_class_that_cannot_be_learned_is_logged(tmp_path, caplog):
    folder = save_coco(tmp_path / 'mine')
    file = folder / COCO_VAL
    write(file, file.read_text().replace('"category_id": 7', '"category_id": 0'))
    assert read_folder(folder, tmp_path / 'run')[1] == ('blue', 'red', 'things')
    assert 'the train split has no box of things, which the detector therefore cannot learn' in caplog.text


def test_classes_whose_names_are_nearly_equal_are_logged(tmp_path, caplog):
    folder = save_voc(tmp_path / 'mine')
    assert read_folder(folder, tmp_path / 'run')[1] == ('blue', 'red')
    assert 'letter case' not in caplog.text
    file = folder / 'Annotations' / 'val_a.xml'
    write(file, file.read_text().replace('blue', 'Blue'))
    assert read_folder(folder, tmp_path / 'run')[1] == ('Blue', 'blue', 'red')
    assert "the classes 'Blue' and 'blue' differ only in letter case or blanks; each is a class of its" in caplog.text


def test_a_folder_inside_the_data_keeps_the_files_of_a_run(tmp_path):
    folder = save_yolo(tmp_path / 'mine')
    for _ in range(2):  # the second run passes over what the first has written
        assert described(read_folder(folder, folder / 'run' / 'annotations')[0]) == SPLITS


def test_processes_of_one_run_keep_the_same_files(tmp_path):
    folder = save_yolo(tmp_path / 'mine')
    with ThreadPoolExecutor(8) as threads:
        for splits, _ in threads.map(lambda _: read_folder(folder, tmp_path / 'run'), range(40)):
            assert described(splits) == SPLITS


def test_names_of_pictures_do_not_tell_a_split(tmp_path):
    for name in ('train_1', 'test_1'):
        write(tmp_path / 'mine' / 'Annotations' / f'{name}.xml', xml(name, SPLITS['train']['a']))
        picture(tmp_path / 'mine' / 'JPEGImages' / f'{name}.jpg')
    splits, _ = read_folder(tmp_path / 'mine', tmp_path / 'run', 0.5)
    assert [len(splits[name].content['images']) for name in splits] == [1, 1]


@pytest.mark.parametrize('names', ["{2: things, 0: blue, 1: red}", "{'0': blue, '1': red, '2': things}"])
def test_classes_of_yolo_may_be_numbered(tmp_path, names):
    folder = save_yolo(tmp_path / 'mine')
    replaced('data.yaml', '[blue, red, things]', names)(folder)
    splits, classes = read_folder(folder, tmp_path / 'run')
    assert classes == ('blue', 'red')
    assert described(splits) == SPLITS


def test_a_test_split_of_yolo_may_be_absent(tmp_path):
    folder = save_yolo(tmp_path / 'mine', 'Roboflow')
    shutil.rmtree(folder / 'test')
    assert list(read_folder(folder, tmp_path / 'run')[0]) == ['train', 'val']


def test_hidden_files_are_no_pictures_of_yolo(tmp_path):
    folder = save_yolo(tmp_path / 'mine')
    train = folder / 'images' / 'train'
    (train / '.ipynb_checkpoints').mkdir()  # as Jupyter makes it
    shutil.copy(train / 'a.jpg', train / '.ipynb_checkpoints' / 'a-checkpoint.jpg')
    write(train / '._a.jpg', 'as macOS writes it beside a.jpg')
    assert described(read_folder(folder, tmp_path / 'run')[0]) == SPLITS
    hidden = folder.rename(tmp_path / '.mine')  # a folder that is given may be hidden
    assert described(read_folder(hidden, tmp_path / 'run')[0]) == SPLITS


def test_the_boxes_of_poses_are_read_from_yolo(tmp_path):
    folder = save_yolo(tmp_path / 'mine')
    boxes = described(read_folder(folder, tmp_path / 'run')[0])
    write(folder / 'data.yaml', (folder / 'data.yaml').read_text() + 'kpt_shape: [2, 3]\n')
    for file in (folder / 'labels').rglob('*.txt'):  # behind each box x, y and visibility of two keypoints
        write(file, ''.join(f'{line} 0.1 0.9 2 0 0 0\n' for line in file.read_text().splitlines()))
    splits, _ = read_folder(folder, tmp_path / 'run')
    assert described(splits) == boxes
    assert 'segmentation' not in splits['train'].content['annotations'][0]


@pytest.mark.parametrize('place', ['train.txt', 'splits/train.txt'])
def test_a_list_of_pictures_and_outlines_are_read_from_yolo(tmp_path, place):
    folder = save_yolo(tmp_path / 'mine')
    write(folder / place, './images/train/a.jpg\n\nimages/train/b.jpg\n')
    write(folder / 'data.yaml', f'path: {folder}\ntrain: {place}\nval: [images/val]\nnames: {{0: blue, 1: red}}\n')
    write(folder / 'labels' / 'train' / 'a.txt', '1 0.25 0.25 0.5 0.25 0.5 0.75\n')
    train = read_folder(folder, tmp_path / 'run')[0]['train'].content
    assert len(train['images']) == 2
    assert train['annotations'][0]['bbox'] == [24, 20, 24, 40]
    assert train['annotations'][0]['area'] == 480  # of the triangle, by which COCO tells small from large
    assert train['annotations'][0]['segmentation'] == [[24, 20, 48, 20, 48, 60]]


def test_fractions_of_yolo_are_of_the_picture_turned_upright(tmp_path):
    folder = save_yolo(tmp_path / 'mine')
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(folder / 'images' / 'val' / 'a.jpg', (80, 96)[::-1], exif=exif)
    val = read_folder(folder, tmp_path / 'run')[0]['val'].content
    assert (val['images'][0]['width'], val['images'][0]['height']) == (80, 96)
    assert val['annotations'][0]['bbox'] == [40, 48, 20, 24]


def test_difficult_objects_of_voc_are_not_counted(tmp_path):
    folder = save_voc(tmp_path / 'mine')
    file = folder / 'Annotations' / 'train_a.xml'
    write(file, file.read_text().replace('<bndbox>', '<difficult>1</difficult><bndbox>'))
    train = read_folder(folder, tmp_path / 'run')[0]['train'].content
    assert [box['iscrowd'] for box in train['annotations']] == [1, 0, 0]


def test_lists_of_voc_may_name_the_folders_around_a_file(tmp_path):
    folder = tmp_path / 'mine'
    for day in ('monday', 'friday', ''):
        write(folder / 'Annotations' / day / 'a.xml', xml('a', [('red', (10, 20, 30, 40))]))
        picture(folder / 'JPEGImages' / day / 'a.jpg')
    write(folder / 'ImageSets' / 'Main' / 'train.txt', 'monday/a\na\n')
    write(folder / 'ImageSets' / 'Main' / 'val.txt', 'friday/a\n')
    splits, _ = read_folder(folder, tmp_path / 'run')
    assert {name: [image['file_name'] for image in split.content['images']] for name, split in splits.items()} == {
        'train': ['JPEGImages/a.jpg', 'JPEGImages/monday/a.jpg'], 'val': ['JPEGImages/friday/a.jpg']}


def test_masks_with_the_name_of_a_picture_of_voc_are_not_taken_for_it(tmp_path):
    folder = tmp_path / 'mine'
    for stem in 'ab':   # as the Oxford-IIIT Pet data have them
        write(folder / 'annotations' / 'xmls' / f'{stem}.xml', xml(stem, [('red', (10, 20, 30, 40))]))
        picture(folder / 'annotations' / 'trimaps' / f'{stem}.png')
        picture(folder / 'images' / f'{stem}.jpg')
    splits, _ = read_folder(folder, tmp_path / 'run', 0.5)
    assert {image['file_name'] for split in splits.values() for image in split.content['images']} == {
        'images/a.jpg', 'images/b.jpg'}


@pytest.mark.parametrize('line', ['my cat 1', 'my cat 1.jpg', 'a', 'a.TIF', 'a -1'])
def test_a_list_of_voc_may_have_blanks_in_names_and_marks_behind_them(tmp_path, line):
    folder = tmp_path / 'mine'
    for stem in ('my cat 1', 'a', 'd'):
        write(folder / 'Annotations' / f'{stem}.xml', xml(stem, [('red', (10, 20, 30, 40))]))
        picture(folder / 'JPEGImages' / f'{stem}.jpg')
    for name, text in (('train', line), ('val', 'd')):
        write(folder / 'ImageSets' / 'Main' / f'{name}.txt', f'{text}\n')
    train = read_folder(folder, tmp_path / 'run')[0]['train'].content
    assert [image['file_name'] for image in train['images']] == [
        f'JPEGImages/{"my cat 1" if "cat" in line else "a"}.jpg']


@pytest.mark.parametrize('save', [save_coco, save_voc, save_yolo])
def test_a_share_of_the_train_split_validates_and_stays_the_same(tmp_path, save):
    parts = []
    for more in (0, 5):
        folder = tmp_path / f'{more}' / 'mine'
        SPLITS['train'].update({f'more{i}': [('red', (i, 2, 20, 20))] for i in range(20 + more)})
        try:
            save(folder)
        finally:
            for name in [name for name in SPLITS['train'] if name.startswith('more')]:
                SPLITS['train'].pop(name)
        for path in sorted(folder.rglob('*')):
            if path.exists() and 'val' in path.name:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if save is save_yolo:
            write(folder / 'data.yaml', re.sub('val: .*\n', '', (folder / 'data.yaml').read_text()))
        with pytest.raises(ValueError, match=r'has no val split .* --val-share 0.2 takes a fifth'):
            read_folder(folder, tmp_path / 'run')
        splits, _ = read_folder(folder, tmp_path / 'run', val_share=0.25)
        contents = {name: json.loads(split.file.read_text()) for name, split in splits.items()}
        names = {name: {Path(image['file_name']).name for image in content['images']}
                 for name, content in contents.items()}
        assert len(names['val']) == round((23 + more) / 4)
        assert len(names['train'] | names['val']) == 23 + more == len(names['train']) + len(names['val'])
        for content in contents.values():
            assert {box['image_id'] for box in content['annotations']} <= {image['id'] for image in content['images']}
        assert sum(len(contents[name]['annotations']) for name in ('train', 'val')) == 3 + 20 + more
        parts.append(names)
    assert len(parts[0]['val'] & parts[1]['train']) <= 1


def test_a_single_file_is_the_train_split(tmp_path):
    write(tmp_path / 'mine' / 'annotations.json', coco(SPLITS['train']))
    for name in 'abc':
        picture(tmp_path / 'mine' / 'pictures' / f'{name}.jpg')
    splits, _ = read_folder(tmp_path / 'mine', tmp_path / 'run', val_share=0.3)
    assert [len(splits[name].content['images']) for name in ('train', 'val')] == [2, 1]
    assert splits['train'].pictures == tmp_path / 'mine' / 'pictures'


def test_the_variants_of_a_picture_stay_together(tmp_path):
    names = [f'cell{i}_jpg.rf.{key}' for i in range(6) for key in ('0f3aB', '9cd21', 'Ze77q')]
    write(tmp_path / 'mine' / 'train.json', coco({name: [('red', (1, 2, 40, 50))] for name in names}))
    for name in names:
        picture(tmp_path / 'mine' / f'{name}.jpg')
    splits, _ = read_folder(tmp_path / 'mine', tmp_path / 'run', val_share=0.3)
    parts = [Counter(image['file_name'].partition('.rf.')[0] for image in json.loads(split.file.read_text())['images'])
             for split in (splits['train'], splits['val'])]
    assert [sorted(part.values()) for part in parts] == [[3] * 4, [3] * 2]


def spoil(save, change):
    def spoiled(folder):
        change(save(folder))
    return spoiled


def replaced(path, old, new):
    def change(folder):
        text = (folder / path).read_text()
        assert old in text
        write(folder / path, text.replace(old, new, 1))
    return change


COCO_VAL = 'annotations/instances_val2017.json'
YOLO_A, VOC_A = 'labels/train/a.txt', 'Annotations/train_a.xml'


@pytest.mark.parametrize(('make', 'error', 'message'), [
    pytest.param(lambda folder: None, FileNotFoundError, r'mine is not a folder; give', id='no folder'),
    pytest.param(lambda folder: folder.mkdir(), FileNotFoundError,
                 r'has 0 pictures and no annotations; looked for COCO .*, Pascal VOC .* and YOLO', id='empty'),
    pytest.param(spoil(save_yolo, lambda folder: (folder / 'data.yaml').unlink()), FileNotFoundError,
                 r'has 5 pictures and no annotations; .* A file such as labels/test/d.txt is none', id='no yaml'),
    pytest.param(lambda folder: (save_yolo(folder), save_voc(folder, 'Roboflow')), ValueError,
                 r'more than one format: Pascal VOC \(test/d.xml\), YOLO \(data.yaml\); give', id='two formats'),
    pytest.param(spoil(save_coco, lambda folder: write(folder / 'train.json', coco(SPLITS['train']))), ValueError, None,
                 id='instances before others'),
    pytest.param(spoil(save_coco, lambda folder: write(folder / 'instances_train.json', coco(SPLITS['train']))),
                 ValueError, r'2 files that may be the annotations of train: .*; keep one', id='two files of a split'),
    pytest.param(spoil(save_coco, lambda folder: shutil.rmtree(folder / 'train2017')), FileNotFoundError,
                 r'train2017.json names the picture [bc].jpg, which does not exist in .* \(1 of 3 looked for\)',
                 id='pictures of another split'),
    pytest.param(spoil(save_coco, lambda folder: shutil.rmtree(folder / 'test2017')), FileNotFoundError,
                 r'test2017.json names the picture d.jpg, which does not exist in .* \(0 of 1 looked for\)',
                 id='no pictures'),
    pytest.param(spoil(save_coco, replaced(COCO_VAL, '"category_id": 7', '"category_id": 9')), ValueError,
                 r'1 of 1 boxes have a category_id that is not among the categories', id='unknown category'),
    pytest.param(spoil(save_coco, replaced(COCO_VAL, '"images"', '"images",')), ValueError,
                 'val2017.json is not a JSON file', id='broken JSON'),
    pytest.param(spoil(save_coco, lambda folder: [write(folder / f'annotations/instances_{name}2017.json', {
        **coco(split), 'annotations': []}) for name, split in SPLITS.items()]), ValueError,
        'has no box in any split', id='no box'),
    pytest.param(spoil(save_coco, lambda folder: (folder / 'annotations/instances_train2017.json').unlink()),
                 ValueError, r'has no train split; it has .*test \(.*val \(', id='no train split'),
    pytest.param(spoil(save_voc, replaced(VOC_A, '<width>96</width>', '')), ValueError,
                 r'train_a.xml has no <size> <width> in <annotation>', id='XML without width'),
    pytest.param(spoil(save_voc, replaced(VOC_A, '<width>96', '<width>0')), ValueError,
                 r'train_a.xml has no size: width=0, height=80; write', id='XML without size'),
    pytest.param(spoil(save_voc, replaced(VOC_A, '<xmax>40', '<xmax>140')), ValueError,
                 r"train_a.xml, 'red': the box from x=10, y=20 to x=140, y=60 does not lie in the picture of 96x80",
                 id='XML with a box outside'),
    pytest.param(spoil(save_voc, replaced(VOC_A, '<xmin>11', '<xmin>eleven')), ValueError,
                 r"train_a.xml has 'eleven' as <bndbox> <xmin> in <object>", id='XML with a word'),
    pytest.param(spoil(save_voc, replaced(VOC_A, '<name>red</name>', '')), ValueError,
                 'train_a.xml has an object without <name>', id='XML without a name'),
    pytest.param(spoil(save_voc, replaced(VOC_A, '</annotation>', '')), ValueError,
                 'train_a.xml is not a complete XML file', id='broken XML'),
    pytest.param(spoil(save_voc, lambda folder: (folder / 'JPEGImages/train_a.jpg').unlink()), ValueError,
                 r"train_a.xml has no picture: there is none named train_a or 'train_a.jpg'", id='XML without picture'),
    pytest.param(spoil(save_voc, lambda folder: (folder / VOC_A).unlink()), FileNotFoundError,
                 r'name 1 picture that has no XML file, of which train_a is the first', id='a list without XML'),
    pytest.param(spoil(save_voc, lambda folder: shutil.copytree(folder / 'ImageSets', folder / 'more' / 'ImageSets')),
                 ValueError, r'both list the pictures of test', id='two lists'),
    pytest.param(spoil(save_yolo, lambda folder: (folder / 'data.yaml').rename(folder / 'classes.txt')),
                 FileNotFoundError, r'no annotations; .*\. classes.txt names classes of YOLO: .* data.yaml with the',
                 id='YOLO without YAML'),
    pytest.param(spoil(save_yolo, lambda folder: write(folder / YOLO_A, '3 0.5 0.5 0.1 0.1\n2 0 0')), ValueError,
                 r'a.txt, line 1 has the class 3, and .*data.yaml names the classes 0 to 2; add', id='YOLO class'),
    pytest.param(spoil(save_yolo, lambda folder: [write(folder / f'labels/train/{name}.txt', '9 0.5 0.5 0.1 0.1')
                                                  for name in 'abc']), ValueError,
                 r'a.txt, line 1 has the class 9.* 2 more files are refused', id='YOLO classes'),
    pytest.param(spoil(save_yolo, lambda folder: write(folder / YOLO_A, '\n1 30 40 20 20')), ValueError,
                 r'a.txt, line 2: 30 40 20 20 are not fractions .* divide pixels by .* 96x80', id='YOLO pixels'),
    pytest.param(spoil(save_yolo, lambda folder: write(folder / YOLO_A, '1 0.9 0.5 0.4 0.1')), ValueError,
                 r'a.txt, line 1: the box .* does not lie in the picture of 96x80', id='YOLO box outside'),
    pytest.param(spoil(save_yolo, lambda folder: write(folder / YOLO_A, '1 0.9 0.5 0.4')), ValueError,
                 r'a.txt, line 1 has 4 numbers; a box has 5', id='YOLO short line'),
    pytest.param(spoil(save_yolo, lambda folder: write(folder / YOLO_A, 'red 0.9 0.5 0.4 0.1')), ValueError,
                 r"a.txt, line 1: 'red 0.9 0.5 0.4 0.1' has to be a class", id='YOLO words'),
    pytest.param(spoil(save_yolo, lambda folder: (folder / 'images/train/a.jpg').write_bytes(b'nothing')), ValueError,
                 r'train/a.jpg cannot be read', id='YOLO broken picture'),
    pytest.param(spoil(save_yolo, lambda folder: shutil.rmtree(folder / 'labels')), ValueError,
                 r'data.yaml: no picture has a label; those of .*images/train/a.jpg were looked for in .*labels/train',
                 id='YOLO without labels'),
    pytest.param(spoil(save_yolo, replaced('data.yaml', 'images/val', 'images/vall')), FileNotFoundError,
                 r'data.yaml: val: images/vall does not exist; looked for .*correct val or path', id='YOLO split'),
    pytest.param(spoil(save_yolo, replaced('data.yaml', '[blue, red, things]', '3')), ValueError,
                 r'data.yaml: names=3 does not name the classes', id='YOLO names'),
    pytest.param(spoil(save_yolo, replaced('data.yaml', 'things]', 'red]')), ValueError,
                 r'data.yaml: names=.* has a name more than once', id='YOLO names twice'),
    pytest.param(spoil(save_yolo, replaced('data.yaml', '[blue', '[[blue')), ValueError,
                 r'data.yaml is not a YAML file', id='broken YAML'),
])
def test_the_error_names_what_is_wrong_with_a_folder(tmp_path, make, error, message):
    make(tmp_path / 'mine')
    if message is None:     # is no error
        assert described(read_folder(tmp_path / 'mine', tmp_path / 'run')[0])['train'] == SPLITS['train']
    else:
        with pytest.raises(error, match=rf'(?s){message}'):
            read_folder(tmp_path / 'mine', tmp_path / 'run')


def test_the_log_names_each_file_that_is_refused(tmp_path, caplog):
    save_yolo(tmp_path / 'mine')
    for name in 'abc':
        write(tmp_path / 'mine' / f'labels/train/{name}.txt', '1 0.9 0.5 0.4 0.1')
    with pytest.raises(ValueError, match=r'a.txt, line 1: the box .* 2 more files are refused too, as the log says'):
        read_folder(tmp_path / 'mine', tmp_path / 'run')
    assert re.findall(r'(\w).txt, line 1: the box', caplog.text) == ['b', 'c']


@pytest.mark.parametrize('share', [0, 1, -1, 0.99])
def test_a_share_has_to_leave_pictures_on_both_sides(tmp_path, share):
    write(tmp_path / 'mine' / 'annotations.json', coco(SPLITS['train']))
    for name in 'abc':
        picture(tmp_path / 'mine' / f'{name}.jpg')
    with pytest.raises(ValueError, match=r'of 3 pictures leaves no picture on one of the sides'):
        read_folder(tmp_path / 'mine', tmp_path / 'run', share)
    with pytest.raises(ValueError, match=r'has a val split .* leave --val-share out'):
        read_folder(save_coco(tmp_path / 'coco'), tmp_path / 'run', 0.2)


@pytest.mark.skipif('TIMM_SE_DATA' not in os.environ, reason='needs real data in TIMM_SE_DATA')
def test_blood_cells_are_the_same_in_every_format(tmp_path):
    bccd = Path(os.environ['TIMM_SE_DATA'], 'bccd').absolute()
    splits, classes = read_folder(bccd, tmp_path / 'run')
    counts = {name: tuple(len(split.content[key]) for key in ('images', 'annotations'))
              for name, split in splits.items()}
    assert counts == {'train': (205, 2804), 'val': (87, 1137), 'test': (72, 945)}
    assert classes == ('RBC', 'WBC', 'Platelets')
    voc, yolo = tmp_path / 'voc', tmp_path / 'yolo'
    for name, split in splits.items():
        boxes = {image['id']: [] for image in split.content['images']}
        for box in split.content['annotations']:
            boxes[box['image_id']].append((classes[box['category_id'] - 1], box['bbox']))
        for image in split.content['images']:
            stem = Path(image['file_name']).stem
            for link in (voc / name / f'{stem}.jpg', yolo / 'images' / name / f'{stem}.jpg'):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(split.pictures / image['file_name'])
            write(voc / name / f'{stem}.xml', xml(stem, boxes[image['id']]).replace(
                '<width>96</width><height>80', '<width>640</width><height>480'))
            write(yolo / 'labels' / name / f'{stem}.txt', ''.join(
                f'{classes.index(label)} {(x + w / 2) / 640} {(y + h / 2) / 480} {w / 640} {h / 480}\n'
                for label, (x, y, w, h) in boxes[image['id']]))
    write(yolo / 'data.yaml', f'names: {list(classes)}\n' + ''.join(f'{name}: images/{name}\n' for name in splits))

    def contents(of_splits):
        found = []
        for name, split in of_splits.items():
            of_id = {category['id']: category['name'] for category in split.content['categories']}
            paths = {image['id']: Path(image['file_name']).name for image in split.content['images']}
            found += [(name, paths[box['image_id']], of_id[box['category_id']], *box['bbox'])
                      for box in split.content['annotations']]
        return sorted(found)
    for folder in (voc, yolo):
        assert contents(read_folder(folder, tmp_path / folder.name / 'run')[0]) == contents(splits)
