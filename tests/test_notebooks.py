"""The notebooks of the documentation run, and hold the outputs of a run."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'docs' / 'notebooks').glob('*.ipynb'))
every = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind='code'):
    return [cell for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == kind]


@every
def test_a_notebook_holds_the_outputs_of_one_run_and_is_small(path):
    found = cells(path)
    outputs = [output for cell in found for output in cell['outputs']]
    assert [cell['execution_count'] for cell in found] == list(range(1, len(found) + 1))
    assert {output['output_type'] for output in outputs} == {'stream', 'display_data'}
    assert all(output.get('name', 'stdout') == 'stdout' for output in outputs)
    assert sum('image/png' in output.get('data', ()) for output in outputs) >= 3
    assert path.stat().st_size < 300_000


@every
def test_pages_that_a_notebook_names_are_on_the_site(path):
    titles = re.findall('(?:- |: )([A-Z][^:]+): \\S+\\.(?:md|ipynb)', (ROOT / 'mkdocs.yml').read_text(encoding='utf-8'))
    text = ''.join(''.join(cell['source']) for cell in cells(path, 'markdown')).replace('\n', ' ')
    named = re.findall(r'\*([A-Z][^*]+)\*', text)
    assert named
    assert set(named) <= set(titles)


@every
@pytest.mark.filterwarnings('ignore::UserWarning')      # matplotlib shows nothing without a screen
def test_code_of_a_notebook_runs_on_fewer_pictures(path, tmp_path, monkeypatch):
    plt = pytest.importorskip('matplotlib.pyplot')
    pytest.importorskip('sklearn')
    monkeypatch.chdir(tmp_path)
    code = '\n'.join(''.join(cell['source']) for cell in cells(path))
    code, epochs = re.subn(r'^epochs = \d+$', 'epochs = 1', code, flags=re.M)
    code, pictures = re.subn('test_size=360', 'test_size=100, train_size=384', code)
    assert epochs == pictures == 1
    with plt.rc_context({'backend': 'Agg'}):
        exec(compile(code, str(path), 'exec'), {'__name__': path.stem})
        plt.close('all')


@pytest.mark.slow
@every
def test_a_notebook_runs_as_it_stands_with_outputs_of_the_stored_kinds(path, tmp_path):
    nbformat = pytest.importorskip('nbformat')
    from nbclient import NotebookClient
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, coalesce_streams=True, resources={'metadata': {'path': tmp_path}}).execute()

    def kinds(found):
        return [{(output['output_type'], output.get('name')) for output in cell['outputs']} - {('stream', 'stderr')}
                for cell in found]

    assert kinds(cell for cell in notebook.cells if cell.cell_type == 'code') == kinds(cells(path))
