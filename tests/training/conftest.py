import subprocess

import pytest
from digit_runs import save_digits


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """Folder of a few real digits."""
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn: the [train] extra')
    return save_digits(tmp_path_factory.mktemp('digits'))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mount = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(folder)], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f'a file system cannot be mounted here: {mount.stderr.strip()}')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)
