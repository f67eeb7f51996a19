"""Files that are complete or absent."""

import pytest

from timm_se_plugin.files.writing import UnwritableFileError, write_atomically


@pytest.mark.parametrize('name', ['file/a.csv', 'file/folder/a.csv', f'{"a" * 253}.csv'])
def test_a_path_that_cannot_be_is_named(tmp_path, name):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UnwritableFileError, match=r'a.csv \(4 bytes\) cannot be written: .*; earlier files are unch'):
        write_atomically(tmp_path / name, b'text')
