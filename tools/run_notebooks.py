"""Run the notebooks of docs/notebooks/ and store their outputs; an error in a cell stops the run."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / 'docs' / 'notebooks'


def main() -> None:
    """Run each notebook in an empty folder, and write the notebook with the outputs."""
    os.environ['PYTHONWARNINGS'] = 'ignore:IProgress not found'    # of tqdm, where ipywidgets is not installed
    for path in sorted(FOLDER.glob('*.ipynb')):
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': folder}},
                           record_timing=False, coalesce_streams=True).execute()
        # Python's version would differ between machines.
        notebook.metadata.language_info = {'name': 'python'}
        path.write_text(nbformat.writes(notebook) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
