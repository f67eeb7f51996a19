import io
import logging
import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from timm_se_plugin.files.tables import read_table
from timm_se_plugin.training.records import Progress, draw_confusion, draw_curves, record_result

HISTORY = [{'epoch': i, 'train_loss': 1 / (i + 1), 'val_loss': 1.0, 'train_top1': 0.5, 'val_top1': 0.4}
           for i in range(3)]


def row(seed, top1=0.5, **more):
    return {'model': 'm', 'options': '', 'seed': seed, 'epochs': 3, 'recipe': 'r', 'top1': top1, 'data': '',
            'global_batch': '', 'amp': '', 'torchcompile': '', **more}


def test_a_finished_run_has_one_row_however_often_it_is_written(tmp_path):
    path = tmp_path / 'results.csv'
    for seed, top1 in ((0, 0.1), (1, 0.2), (0, 0.3)):
        record_result(path, row(seed, top1), HISTORY)
    assert [(line['seed'], line['top1']) for line in read_table(path)] == [('1', '0.2'), ('0', '0.3')]
    assert len(read_table(tmp_path / 'results-curves.csv')) == 6


@pytest.mark.parametrize('other', [
    {'data': 'birds'}, {'global_batch': 64}, {'amp': 'bfloat16'}, {'torchcompile': 'inductor'}])
def test_a_run_on_other_data_or_in_other_steps_does_not_replace_a_row(tmp_path, other):
    path = tmp_path / 'results.csv'
    record_result(path, row(0, 0.1), HISTORY)
    record_result(path, row(0, 0.2, **other), HISTORY)
    assert [line['top1'] for line in read_table(path)] == ['0.1', '0.2']
    assert len(read_table(tmp_path / 'results-curves.csv')) == 6


def test_a_row_from_before_there_were_options_is_one_without(tmp_path):
    path = tmp_path / 'results.csv'
    path.write_text('model,seed,epochs,recipe,top1\nm,0,3,r,0.1\nm,1,3,r,0.2\n')
    record_result(path, row(0, 0.3), HISTORY)
    record_result(path, row(0, 0.4, options="attn='eca'"), HISTORY)
    assert [(line['options'], line['seed'], line['top1']) for line in read_table(path)] == [
        ('', '1', '0.2'), ('', '0', '0.3'), ("attn='eca'", '0', '0.4')]
    assert len(read_table(tmp_path / 'results-curves.csv')) == 6


def test_runs_that_end_together_all_get_their_row(tmp_path):
    path = tmp_path / 'results.csv'
    context = multiprocessing.get_context('forkserver')
    processes = [context.Process(target=record_result, args=(path, row(seed), HISTORY)) for seed in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {line['seed'] for line in read_table(path)} == set('012345')
    assert len(read_table(tmp_path / 'results-curves.csv')) == 18


def test_progress_is_plain_lines_where_there_is_no_terminal(caplog):
    caplog.set_level(logging.INFO, 'timm_se_plugin')
    progress = Progress('epoch 1/2', batches=5, start=0, images=8, interval=2, shown=True)
    for batch in range(5):
        progress.update(batch, loss=0.5, top1=0.25)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split('  ')[1] for line in lines] == ['2/5', '4/5', '5/5']
    assert 'loss 0.5  top1 0.25' in lines[0]
    assert 'images/s' in lines[0]
    assert lines[-1].endswith('0:00 left')


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    progress = Progress('epoch 1/2', batches=5, start=2, images=8, interval=2, shown=True)
    for batch in (2, 4):  # as a GPU's, which is not looked at after each
        progress.update(batch, loss=0.5, top1=0.25)
    progress.bar.refresh()
    line = sys.stderr.getvalue().split('\r')[-1]
    progress.close()
    assert line.startswith('epoch 1/2: 100%')
    assert '40.0/40.0' in line
    assert 'images/s, loss 0.5  top1 0.25' in line


def test_curves_are_those_of_the_history(tmp_path):
    figure = draw_curves(HISTORY, 'title', tmp_path / 'curves.png')
    for axes, name in zip(figure.axes, ('loss', 'top1'), strict=True):
        assert [list(line.get_ydata()) for line in axes.lines] == [
            [row[f'{split}_{name}'] for row in HISTORY] for split in ('train', 'val')]
        assert list(axes.lines[0].get_xdata()) == [row['epoch'] + 1 for row in HISTORY]
        assert [text.get_text() for text in axes.get_legend().texts] == [f'train {name}', f'val {name}']
    with Image.open(tmp_path / 'curves.png') as picture:
        assert picture.size == (1100, 440)  # 10 x 4 inches


def test_a_confusion_matrix_shows_counts_on_shares(tmp_path):
    confusion = torch.tensor([[6, 2, 0], [0, 0, 0], [1, 0, 3]])
    figure = draw_confusion(confusion, ['cat', 'dog', 'owl'], 'title', tmp_path / 'confusion.png')
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0, 0.75]]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): '6', (1, 0): '2', (0, 2): '1', (2, 2): '3'}
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ['cat', 'dog', 'owl']
    assert (tmp_path / 'confusion.png').is_file()


def test_a_confusion_matrix_of_many_classes_names_some_of_them(tmp_path):
    names = [f'class {i}' for i in range(65)]
    axes = draw_confusion(torch.eye(65, dtype=torch.int64), names, 'title', tmp_path / 'confusion.png').axes[0]
    assert not axes.texts
    assert [label.get_text() for label in axes.get_xticklabels()] == names[::3]


def test_drawing_leaves_the_users_matplotlib_alone(tmp_path, monkeypatch):
    import matplotlib
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    monkeypatch.setattr(matplotlib, 'use', lambda *args, **kwargs: pytest.fail('matplotlib.use was called'))
    draw_curves(HISTORY, 'title', tmp_path / 'curves.png')
    draw_confusion(torch.eye(2, dtype=torch.int64), 'ab', 'title', tmp_path / 'confusion.png')


def test_dollars_in_the_names_of_classes_are_no_formulas(tmp_path):
    names = ['$_$', '$10%-$20%', 'US$']
    axes = draw_confusion(torch.eye(3, dtype=torch.int64), names, 'title', tmp_path / 'confusion.png').axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [(label.get_text(), label.get_parse_math()) for label in labels] == [(name, False) for name in names]


@pytest.fixture
def with_letters(tmp_path, monkeypatch):
    """The only font of the system, a copy of DejaVu Sans that has letters of the Bamum script too."""
    from fontTools.ttLib import TTFont
    from matplotlib import get_data_path
    font, path = TTFont(Path(get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')), str(tmp_path / 'letters.ttf')
    for table in font['cmap'].tables:
        if table.isUnicode() and table.format == 12:
            table.cmap |= {code: 'A' for code in range(0x16800, 0x16a39)}
    font.save(path)
    monkeypatch.setattr('matplotlib.font_manager.findSystemFonts', lambda: [path])
    return path


def test_names_of_classes_are_drawn_in_a_font_that_has_their_letters(with_letters, tmp_path):
    figure = draw_confusion(torch.eye(2, dtype=torch.int64), ['cat', '\U00016a01'], '\U00016a01', tmp_path / 'c.png')
    axes = figure.axes[0]
    for name, other in (axes.get_xticklabels()[::-1], axes.get_yticklabels()[::-1], (axes.title, axes.xaxis.label)):
        assert name.get_fontproperties().get_file() == with_letters
        assert other.get_fontproperties().get_file() is None


def test_letters_that_no_font_has_are_named_once_in_the_log(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr('matplotlib.font_manager.findSystemFonts', lambda: [])
    for _ in range(2):
        draw_confusion(torch.eye(2, dtype=torch.int64), ['cat', '\U00016a02'], 'title', tmp_path / 'c.png')
    assert caplog.text.count('\U00016a02') == 1


def test_a_byte_of_a_name_that_is_not_utf8_is_drawn_as_in_tables(tmp_path):
    draw_curves(HISTORY, 'run \udce9', tmp_path / 'curves.png')
    axes = draw_confusion(torch.eye(2, dtype=torch.int64), ['\udce9', 'b'], '\udce9', tmp_path / 'c.png').axes[0]
    for text in (axes.title, axes.get_xticklabels()[0], axes.get_yticklabels()[0]):
        assert text.get_text() == r'\udce9'
