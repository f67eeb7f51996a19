import subprocess

import pytest


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
