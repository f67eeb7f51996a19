"""Tables of measurements as CSV files."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from .writing import check_file, write_atomically

__all__ = ['check_table', 'read_table', 'replace_rows', 'table', 'write_table']


def table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = ()) -> str:
    """Rows as CSV text. The first columns are as given, then come others; floats have ten significant digits."""
    rows = [{column: _text(cell) for column, cell in row.items()} for row in rows]
    columns = list(dict.fromkeys((*columns, *(column for row in rows for column in row))))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _text(cell: Any) -> str:
    return str(float(f'{cell:.10g}')) if isinstance(cell, float) else '' if cell is None else str(cell)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; an empty list if the file does not exist.

    Raises:
        ValueError: the file is not in UTF-8, or no table with commas and one column for each value.
    """
    if not path.exists():
        return []
    try:  # Excel writes a byte order mark, which would otherwise become a part of the first column's name
        reader = csv.DictReader(io.StringIO(path.read_text(encoding='utf-8-sig')))
        columns = list(reader.fieldnames or ())
        while columns[-2:] == ['', '']:  # spreadsheets write empty columns at the end
            columns.pop()
        reader.fieldnames = columns
        rows = list(reader)
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not in UTF-8: {error}; save the table as "CSV UTF-8"') from error
    except csv.Error as error:
        raise ValueError(f'{path} is not CSV: {error}; a cell with a quotation mark at its beginning needs one at its '
                         'end too') from error
    if len(columns) == 1 and (mark := next((mark for mark in ';\t' if mark in columns[0]), None)):
        raise ValueError(f'the columns of {path} are separated by {mark!r}; save the table with commas')
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise ValueError(f'{path} has several columns named {", ".join(map(repr, twice))}; rename all but one of them')
    for number, row in enumerate(rows, 1):
        if any(row.pop(None, ())):  # type: ignore[call-overload]  # under None are the values without a column
            raise ValueError(f'row {number} of {path} has another number of values than the header has columns')
    return rows


def check_table(path: str | Path) -> None:
    """Refuse a table to which no rows can be added, before the work that the rows come from.

    Raises:
        ValueError: `path` is a folder, or a file that :func:`read_table` refuses.
        UnwritableFileError: the folder of the table cannot be made, or is read-only.
    """
    path = Path(path)
    check_file(path, 'CSV file')
    read_table(path)


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = ()) -> None:
    r"""Write a CSV file completely, or leave the one that exists as it is; the columns are as in :func:`table`.

    A byte of a file's name that is not UTF-8, as old archives have, is written as ``\udcXX``.
    """
    write_atomically(path, table(rows, columns).encode(errors='backslashreplace'))


def replace_rows(path: str | Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Add rows to a table, in which they replace the rows with the same values in all columns of ``keys``.

    Processes that write to the same table at the same time wait for one another.

    Args:
        path: the CSV file; the file and its folder are created if they do not exist.
        rows: the new rows.
        keys: the columns that identify a row.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # the link stays, and all who use the table share one lock
    path.parent.mkdir(parents=True, exist_ok=True)
    new = {tuple(_text(row[key]) for key in keys) for row in rows}
    with FileLock(path.with_name(f'.{path.name}.lock')):
        kept = [row for row in read_table(path) if tuple(row.get(key, '') for key in keys) not in new]
        write_table(path, [*kept, *rows])
