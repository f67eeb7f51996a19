"""Files: written whole or not at all, tables of results, and files from the Hugging Face Hub."""

from .hub_files import fetch, read_config, tensor_shapes
from .tables import read_table, replace_rows, write_table
from .version import __version__
from .writing import UnwritableFileError, is_whole, write_atomically

__all__ = [
    'UnwritableFileError', '__version__', 'fetch', 'is_whole', 'read_config', 'read_table', 'replace_rows',
    'tensor_shapes', 'write_atomically', 'write_table',
]
