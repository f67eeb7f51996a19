"""Files that are complete or absent."""

import pytest
import torch

from timm_se_plugin.files.writing import UnwritableFileError, is_whole, write_atomically


@pytest.mark.parametrize('name', ['file/a.csv', 'file/folder/a.csv', f'{"a" * 253}.csv'])
def test_a_path_that_cannot_be_is_named(tmp_path, name):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UnwritableFileError, match=r'a.csv \(4 bytes\) cannot be written: .*; earlier files are unch'):
        write_atomically(tmp_path / name, b'text')


@pytest.mark.parametrize('offset', [6, 8, 10, 46], ids=['version', 'encryption', 'compression', 'name'])
def test_a_file_with_a_changed_byte_in_its_table_of_contents_is_not_whole(tmp_path, offset):
    torch.save({'a': torch.zeros(4)}, tmp_path / 'a.pth')
    assert is_whole(tmp_path / 'a.pth')
    content = bytearray((tmp_path / 'a.pth').read_bytes())
    content[content.index(b'PK\x01\x02') + offset] = 0xf1
    (tmp_path / 'a.pth').write_bytes(content)
    assert not is_whole(tmp_path / 'a.pth')
