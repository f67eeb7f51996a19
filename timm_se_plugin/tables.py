"""Tables of measurements as CSV files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ['replace_rows']


def replace_rows(path: str | Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Add rows to a table, in the place of those that agree with one of them in all ``keys``.

    Args:
        path: the CSV file; it and its folder are made where they are missing. Columns that only the old or only the
            new rows have are kept, and empty in the others.
        rows: what to add.
        keys: the columns that say what a row is about.
    """
    path = Path(path)
    old: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline='') as file:
            old = list(csv.DictReader(file))
    new = {tuple(str(row[key]) for key in keys) for row in rows}
    kept = [row for row in old if tuple(row.get(key, '') for key in keys) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')  # a table that took hours is not lost to a full disk
    with part.open('w', newline='') as file:
        columns = dict.fromkeys(key for row in [*rows, *kept] for key in row)
        writer = csv.DictWriter(file, list(columns), restval='', lineterminator='\n')
        writer.writeheader()
        writer.writerows([*kept, *rows])
    part.replace(path)
