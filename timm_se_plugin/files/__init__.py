"""Files: written completely or not at all, tables of results, and the files of saved models."""

from .hub_files import fetch, hub_name, read_config_json, saved_file, tensor_shapes
from .tables import read_table, replace_rows, write_table
from .version import __version__
from .writing import UnwritableFileError, is_whole, write_atomically

__all__ = [
    'UnwritableFileError', '__version__', 'fetch', 'hub_name', 'is_whole', 'read_config_json', 'read_table',
    'replace_rows', 'saved_file', 'tensor_shapes', 'write_atomically', 'write_table',
]
