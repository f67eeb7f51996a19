import csv
import io
import json
import os
import shutil
import sys

import pytest
import timm
import torch
from digit_runs import TINY
from PIL import Image

from timm_se_plugin.commands import main
from timm_se_plugin.training.checkpoint import read_checkpoint
from timm_se_plugin.weights.folders import write_model


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """Folder of a run whose validation set is a share of each class of one folder without splits."""
    folder = tmp_path_factory.mktemp('runs')
    main(['train', *TINY, '--epochs', '3', '--data-dir', str(digits / 'train'), '--val-share', '0.25', '--output',
          str(folder), '--experiment', 'run'])
    return folder / 'run'


def right(rows):
    """Share of the pictures whose best class is the name of their folder."""
    best = [(row['file'].split('/')[-2], row['classes'][0]['label']) for row in rows]
    return sum(true == said for true, said in best) / len(best)


@pytest.mark.parametrize('batch_size', [1, 32])
def test_a_run_predicts_what_its_evaluation_measured(trained, digits, printed, batch_size):
    rows = printed('predict', digits / 'val', '--model', trained, '--top', '3', '--batch-size', str(batch_size))
    metrics = printed('evaluate', '--checkpoint', trained / 'model_best.pth.tar', '--data-dir', digits, '--val-split',
                      'val', '--val-share', '0')
    assert len(rows) == 50
    assert all(len(row['classes']) == 3 for row in rows)
    assert right(rows) == pytest.approx(metrics['top1'])


def test_a_shared_model_predicts_the_same_and_files_are_written(trained, digits, printed, hub, tmp_path):
    pictures = sorted((digits / 'val' / '3').iterdir())
    rows = printed('predict', *pictures, '--model', trained, '--output', tmp_path / 'found.csv', '--sheet',
                   tmp_path / 'sheet.png')
    with open(tmp_path / 'found.csv', encoding='utf-8') as file:
        table = list(csv.DictReader(file))
    assert [row['label'] for row in table[:5]] == [found['label'] for found in rows[0]['classes']]
    assert len(table) == 5 * len(pictures)
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.width == 160 * min(6, len(pictures))
    printed('push', trained, 'user/digits')
    shared = printed('predict', *pictures, '--model', 'hf-hub:user/digits', '--output', tmp_path / 'found.json')
    assert [row['classes'][0]['label'] for row in shared] == [row['classes'][0]['label'] for row in rows]
    assert json.loads((tmp_path / 'found.json').read_text()) == shared


def test_a_training_on_pictures_as_they_are_stored_predicts_them_so(trained, digits, printed, hub, tmp_path):
    stored = tmp_path / 'run'
    shutil.copytree(trained, stored)
    checkpoint = read_checkpoint(stored / 'model_best.pth.tar')
    checkpoint['args'].exif_orientation = False
    torch.save(checkpoint, stored / 'model_best.pth.tar')
    picture, turned = next((digits / 'val' / '3').iterdir()), tmp_path / 'turned.png'
    with Image.open(picture) as image:
        image.getexif()[0x0112] = 6
        image.save(turned, exif=image.getexif())

    def scores(model, *files):
        return [row['classes'] for row in printed('predict', *files, '--model', model)]
    plain, by_default = scores(trained, picture, turned)
    assert plain != by_default
    printed('push', stored, 'user/stored')
    printed('export', stored, tmp_path / 'stored.onnx', '--pictures', picture)
    printed('convert', stored / 'model_best.pth.tar', 'se_test_resnet_plugin', tmp_path / 'converted')
    for model in (stored, 'hf-hub:user/stored', tmp_path / 'stored.onnx', tmp_path / 'converted'):
        for classes in scores(model, picture, turned):
            assert [row['score'] for row in classes] == pytest.approx([row['score'] for row in plain], abs=1e-3)


def test_broken_files_are_named_and_passed_over_and_pictures_of_all_kinds_are_read(trained, digits, printed, tmp_path,
                                                                                  caplog):
    picture = next((digits / 'val' / '3').iterdir())
    inner = tmp_path / 'inner' / 'most'
    inner.mkdir(parents=True)
    shutil.copy(picture, inner)
    for mode, name in (('CMYK', 'a.jpg'), ('L', 'b.png'), ('RGBA', 'c.webp'), ('P', 'd.gif')):
        Image.open(picture).convert(mode).save(tmp_path / name)
    (tmp_path / 'broken.png').write_bytes(picture.read_bytes()[:60])
    (tmp_path / 'notes.txt').write_text('no picture')
    (tmp_path / 'loop').symlink_to(tmp_path.parent)
    rows = printed('predict', tmp_path, '--model', trained)
    assert len(rows) == 5
    assert 'broken.png cannot be read' in caplog.text
    assert 'loop links to a folder that it lies in, and is not followed' in caplog.text
    with pytest.raises(SystemExit, match='of 1 file, none is a picture that can be read'):
        main(['predict', str(tmp_path / 'broken.png'), '--model', str(trained)])


def test_a_checkpoint_in_the_place_of_a_run_and_a_run_in_that_of_a_checkpoint_are_told_apart(trained, digits, tmp_path):
    picture, best = str(next((digits / 'val' / '3').iterdir())), trained / 'model_best.pth.tar'
    with pytest.raises(SystemExit, match=f'model_best.pth.tar is a file of weights; give the folder {trained}'):
        main(['predict', picture, '--model', str(best)])
    with pytest.raises(SystemExit, match=f'{trained} is not a file; it is the folder of a run: give {best}'):
        main(['evaluate', '--checkpoint', str(trained)])
    with pytest.raises(SystemExit, match=f'give a checkpoint of one of the runs in it, which are {trained}$'):
        main(['evaluate', '--checkpoint', str(trained.parent)])
    with pytest.raises(SystemExit, match='gone is unknown; there is no such folder either'):
        main(['predict', picture, '--model', str(tmp_path / 'gone')])
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    with pytest.raises(SystemExit, match='is the folder of a detector, which timm-se detect predict takes'):
        main(['predict', picture, '--model', str(tmp_path)])
    with pytest.raises(SystemExit, match=f'has no config.json.*give one of the folders of runs in it: {trained}$'):
        main(['predict', picture, '--model', str(trained.parent)])


def test_an_ending_of_the_sheet_that_is_no_picture_is_refused_before_the_work(trained, digits, tmp_path, capsys):
    for name in ('sheet', 'sheet.csv', 'sheet.psd', 'sheet.xbm', 'sheet.h5'):
        with pytest.raises(SystemExit, match=f'{name} does not end like a picture in colours, such as sheet.jpg'):
            main(['predict', str(digits / 'val'), '--model', str(trained), '--sheet', str(tmp_path / name)])
    assert not capsys.readouterr().out


def test_a_sheet_is_not_written_over_a_picture(trained, digits, tmp_path):
    picture = tmp_path / 'a.png'
    shutil.copy(next((digits / 'val' / '3').iterdir()), picture)
    content = picture.read_bytes()
    for sheet in (picture, tmp_path / '..' / tmp_path.name / 'a.png'):
        with pytest.raises(SystemExit, match='is one of the pictures, which would be overwritten; give another'):
            main(['predict', str(tmp_path), '--model', str(trained), '--sheet', str(sheet)])
    assert picture.read_bytes() == content


@pytest.mark.parametrize(('ending', 'rows'), [('jpg', 200), ('webp', 80)])
def test_a_sheet_of_very_many_pictures_is_not_higher_than_its_format_allows(digits, tmp_path, ending, rows):
    from timm_se_plugin.training.prediction import Prediction, draw_sheet
    picture = Prediction(str(next((digits / 'val' / '3').iterdir())), (('3', 0.9),))
    draw_sheet([picture] * 400, tmp_path / f'sheet.{ending}', columns=1)
    with Image.open(tmp_path / f'sheet.{ending}') as sheet:
        assert sheet.size == (400 // rows * 160, rows * 178)


@pytest.mark.parametrize('names', [('Öl', 'Ül'), ('мяч', 'шар')])
def test_names_in_a_sheet_have_their_own_letters(digits, tmp_path, names):
    from timm_se_plugin.training.prediction import Prediction, draw_sheet
    for name in names:
        draw_sheet([Prediction(str(next((digits / 'val' / '3').iterdir())), ((name, 0.9),))], tmp_path / f'{name}.png')
    first, second = (Image.open(tmp_path / f'{name}.png').tobytes() for name in names)
    assert first != second


def test_a_sheet_has_names_with_bytes_that_are_not_utf8(digits, tmp_path):
    from timm_se_plugin.training.prediction import Prediction, draw_sheet
    picture = str(next((digits / 'val' / '3').iterdir()))
    for file, name in (('a.png', 'B\udcffr'), ('b.png', r'B\udcffr')):
        draw_sheet([Prediction(picture, ((name, 0.9),))], tmp_path / file)
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


def test_without_matplotlib_a_sheet_is_drawn_and_the_log_says_what_its_names_lack(monkeypatch, caplog):
    from timm_se_plugin.files.fonts import font_for
    monkeypatch.setitem(sys.modules, 'matplotlib.ft2font', None)
    assert font_for('cat', 13).getlength('cat') > 0
    assert not caplog.text
    assert font_for('мяч', 13).getlength('a') > 0
    assert 'install matplotlib, which brings a font with many alphabets' in caplog.text


def test_predictions_are_kept_when_a_later_picture_ends_the_work(trained, digits, monkeypatch, tmp_path):
    from timm_se_plugin.training import prediction
    predict = prediction.predict

    def interrupted(*args):
        yield next(predict(*args))
        raise KeyboardInterrupt
    monkeypatch.setattr(prediction, 'predict', interrupted)
    with pytest.raises(SystemExit, match='130'):
        main(['predict', str(digits / 'val'), '--model', str(trained), '--output', str(tmp_path / 'found.csv')])
    with open(tmp_path / 'found.csv', encoding='utf-8') as file:
        assert len({row['file'] for row in csv.DictReader(file)}) == 1


def test_names_that_are_not_utf8_or_not_in_the_encoding_of_the_output_lose_nothing(trained, digits, monkeypatch,
                                                                                   tmp_path):
    picture, folder = next((digits / 'val' / '3').iterdir()), tmp_path / 'é'
    folder.mkdir()
    name = folder / os.fsdecode(b'caf\xe9.png')
    try:
        shutil.copy(picture, name)
    except OSError:
        pytest.skip('this file system takes UTF-8 alone')
    shutil.copy(picture, folder / 'z.png')
    for ending in ('csv', 'json'):
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), encoding='ascii'))
        main(['predict', str(folder), '--model', str(trained), '--top', '1', '--output', str(tmp_path / f'f.{ending}'),
              '--sheet', str(tmp_path / 'sheet.png')])
    with open(tmp_path / 'f.csv', encoding='utf-8') as file:
        assert [row['file'] for row in csv.DictReader(file)] == [f'{folder}/caf\\udce9.png', f'{folder}/z.png']
    assert [row['file'] for row in json.loads((tmp_path / 'f.json').read_text(encoding='utf-8'))] == [
        str(name), f'{folder}/z.png']


def test_a_saved_model_whose_weights_are_missing_is_named(digits, tmp_path):
    for name in ('se_resnet18_plugin', 'resnet18'):
        folder = tmp_path / name
        write_model(timm.create_model(name, num_classes=10), folder)
        (folder / 'model.safetensors').unlink()
        for words in (['predict', str(digits / 'val')], ['push', str(folder), 'user/digits', '--dry-run'],
                      ['convert', f'local-dir:{folder}', 'se_resnet18_plugin', str(tmp_path / 'out')]):
            model = ['--model', str(folder)] if words[0] == 'predict' else []
            with pytest.raises(SystemExit, match='has no file of weights, such as '):
                main([*words, *model])


def test_a_model_that_cannot_predict_says_why(digits, tmp_path):
    picture = str(next((digits / 'val' / '3').iterdir()))
    for model, message in (('se_resnet20_cifar_plugin', 'has no published weights'), (str(tmp_path), 'no config.json'),
                           ('resnet1', 'did you mean')):
        with pytest.raises(SystemExit, match=message):
            main(['predict', picture, '--model', model])


def test_a_saved_folder_needs_no_prefix_and_imagenets_classes_have_words(digits, printed, tmp_path):
    write_model(timm.create_model('se_test_resnet_plugin'), tmp_path / 'saved')
    rows = printed('predict', next((digits / 'val' / '3').iterdir()), '--model', tmp_path / 'saved', '--top', '1000')
    assert any('tench' in found['label'] for found in rows[0]['classes'])


def test_a_share_is_stratified_stable_and_apart_from_the_training(digits):
    from argparse import Namespace

    from timm_se_plugin.training import parse_options
    from timm_se_plugin.training.splits import open_split

    def files(split, **changes):
        options = parse_options(['--data-dir', str(digits / 'train'), '--val-share', '0.25'])
        return open_split(Namespace(**{**vars(options), **changes}), split, split == 'train').reader.samples

    val, train = files('validation'), files('train')
    assert not set(val) & set(train)
    assert len(val) + len(train) == 96
    for target in range(10):
        mine, others = (sum(1 for _, t in part if t == target) for part in (val, train))
        assert mine == round(0.25 * (mine + others))
    assert files('validation') == val
    assert files('validation', val_share_seed=1) != val


def test_the_pictures_that_a_share_leaves_to_the_training_can_be_evaluated(trained, printed):
    share, others = (printed('evaluate', '--checkpoint', trained / 'last.pth.tar', '--val-split', split)['images']
                     for split in ('validation', 'train'))
    assert share < others
    assert share + others == 96


def test_a_share_is_refused_where_there_are_splits_or_single_pictures(digits, tmp_path):
    with pytest.raises(SystemExit, match="has a split 'val' already; give --val-share 0"):
        main(['train', *TINY, '--data-dir', str(digits), '--val-split', 'val', '--val-share', '0.2'])
    for name in 'ab':
        (tmp_path / name).mkdir()
        shutil.copy(next((digits / 'val' / '3').iterdir()), tmp_path / name / 'one.png')
    with pytest.raises(SystemExit, match='is the only picture of its class, and --val-share needs two'):
        main(['train', *TINY, '--data-dir', str(tmp_path), '--val-share', '0.2'])
