"""Tables of measurements."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from timm_se_plugin.files.tables import check_table, read_table, replace_rows
from timm_se_plugin.files.writing import UnwritableFileError


def test_rows_about_the_same_thing_are_replaced_and_columns_are_kept(tmp_path):
    path = tmp_path / 'new' / 'table.csv'
    replace_rows(
        path, [{'model': 'a', 'seed': 0, 'top1': 0.5, 'note': 'x,y'}, {'model': 'b', 'seed': 0}], ['model', 'seed'])
    replace_rows(path, [{'model': 'a', 'seed': 1, 'top1': 0.6}], ['model', 'seed'])
    replace_rows(path, [{'model': 'b', 'seed': 0, 'top1': 69.99999999999999 / 100, 'time': 1}], ['model', 'seed'])
    assert path.read_text().splitlines() == [
        'model,seed,top1,note,time', 'a,0,0.5,"x,y",', 'a,1,0.6,,', 'b,0,0.7,,1']


def test_floats_are_the_same_key_each_time(tmp_path):
    for top1 in (0.5, 0.6):
        replace_rows(tmp_path / 'table.csv', [{'share': 1 / 3, 'lr': 0.1 + 0.2, 'top1': top1}], ('share', 'lr'))
    assert (tmp_path / 'table.csv').read_text().splitlines() == ['share,lr,top1', '0.3333333333,0.3,0.6']


def test_rows_that_are_added_at_the_same_time_are_all_there(tmp_path):
    path = tmp_path / 'table.csv'
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: replace_rows(path, [{'seed': seed}], ['seed']), range(40)))
    assert sorted(int(row['seed']) for row in read_table(path)) == list(range(40))


def test_a_table_is_written_where_python_has_no_fcntl(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fcntl', None)  # as on Windows
    replace_rows(tmp_path / 'table.csv', [{'seed': 0}], ['seed'])
    assert (tmp_path / 'table.csv').read_text() == 'seed\n0\n'


def test_a_table_that_excel_has_saved_keeps_its_first_column(tmp_path):
    path = tmp_path / 'table.csv'
    path.write_text('model,top1\na,0.5\nb,0.6\n', encoding='utf-8-sig')
    replace_rows(path, [{'model': 'a', 'top1': 0.7}], ['model'])
    assert path.read_text(encoding='utf-8') == 'model,top1\nb,0.6\na,0.7\n'


def test_a_table_that_takes_no_rows_is_refused_by_name(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'latin.csv').write_text('model,note\na,gr\u00fcn\n', encoding='latin-1')
    for name, kind, said in (
            ('.', ValueError, 'is a folder; give the name of a CSV file'),
            ('file/table.csv', UnwritableFileError, 'file cannot be a folder of results: .*; give another name'),
            ('latin.csv', ValueError, r'latin\.csv is not in UTF-8: .*; save the table as "CSV UTF-8"')):
        with pytest.raises(kind, match=said):
            check_table(tmp_path / name)
    check_table(tmp_path / 'new' / 'table.csv')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(('text', 'said'), [
    ('model;top1\na;0,5\n', "are separated by ';'; save the table with commas"),
    ('model\ttop1\na\t0.5\n', "are separated by '.t'; save the table with commas"),
    ('model,note,note\na,1,2\n', "has several columns named 'note'; rename all but one of them"),
    ('model,top1\nb,0.4\na,0.5,a note\n', 'row 2 of .* has another number of values than the header has columns'),
    ('model,note\na,"' + 'x' * 200_000, 'is not CSV: .*; a cell with a quotation mark at its beginning needs one')])
def test_a_table_whose_cells_would_get_lost_or_mixed_is_refused_and_left_as_it_is(tmp_path, text, said):
    path = tmp_path / 'table.csv'
    path.write_text(text)
    for add in (check_table, lambda path: replace_rows(path, [{'model': 'a', 'top1': 0.6}], ['model'])):
        with pytest.raises(ValueError, match=said):
            add(path)
    assert path.read_text() == text


def test_a_link_to_a_table_stays_a_link_and_the_table_gets_the_rows(tmp_path):
    table, link = tmp_path / 'shared.csv', tmp_path / 'mine.csv'
    replace_rows(table, [{'model': 'a', 'top1': 0.5}], ['model'])
    link.symlink_to(table)
    replace_rows(link, [{'model': 'b', 'top1': 0.6}], ['model'])
    assert link.is_symlink()
    assert [row['model'] for row in read_table(table)] == ['a', 'b']


@pytest.mark.parametrize('text', ['model,top1,,\na,0.5,,\n', 'model,top1\na,0.5,,\n'])
def test_empty_columns_that_a_spreadsheet_has_left_are_no_obstacle(tmp_path, text):
    path = tmp_path / 'table.csv'
    path.write_text(text)
    replace_rows(path, [{'model': 'b', 'top1': 0.6}], ['model'])
    assert [(row['model'], row['top1']) for row in read_table(path)] == [('a', '0.5'), ('b', '0.6')]


@pytest.mark.skipif(sys.platform != 'linux', reason='needs a folder that even root cannot write into')
def test_a_table_in_a_folder_that_takes_no_files_is_refused():
    with pytest.raises(UnwritableFileError, match=r'/proc cannot be a folder of results: .*; give another name'):
        check_table('/proc/table.csv')
