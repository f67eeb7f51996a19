"""Facts about weights that the network itself cannot tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files.tables import read_table

__all__ = ['Facts', 'csv_row']


@dataclass(frozen=True)
class Facts:
    """Origin and results of weights, for a model card, which leaves out what is None.

    Args:
        license: the Hub's identifier of a license, such as ``'apache-2.0'``.
        data: what the model was trained on.
        recipe: how the model was trained.
        results: measured values by name, such as ``{'top1': '76.1'}``.
        results_file: name of the CSV file of which `results` is a row.
    """

    license: str | None = None
    data: str | None = None
    recipe: str | None = None
    results: Mapping[str, object] | None = None
    results_file: str | None = None


def csv_row(path: str | Path, row: int | None = None) -> dict[str, str]:
    """One row of a CSV file with a header.

    Args:
        path: the file.
        row: number of the row, from 1 (below the header), or from -1 (the last one) backwards. None takes the only row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no table in UTF-8 with commas, has no such row, or has another number of values there
            than of columns; or `row` is None and the file has several.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no file {path}')
    rows = read_table(Path(path))
    if not rows:
        raise ValueError(f'{path} has no row below its header')
    if row is None and len(rows) == 1:
        row = 1
    if row is None or not 1 <= abs(row) <= len(rows):
        raise ValueError(f'{path} has {len(rows)} rows, and row={row} is none of them; give a number from 1 to '
                         f'{len(rows)}, or from -1 to -{len(rows)} to count from the end')
    found: dict = rows[row - 1 if row > 0 else row]
    if None in found.values():
        raise ValueError(f'row {row} of {path} has another number of values than the header has columns')
    return found
