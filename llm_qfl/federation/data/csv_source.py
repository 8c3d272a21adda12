"""`csv:<path>`: a comma-separated UTF-8 file with one header line, plain or gzip.

Read with the standard library: a real node starts a process for every message, and pandas alone takes a second to
import. It would also cut rows that are too long without a word.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from llm_qfl.federation.data.frame import table_from_columns, to_numbers, used_columns
from llm_qfl.federation.data.table import Table, Wanted
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.types import Array

CHUNK = 20_000  # rows held as strings at a time


def read_csv(path: Path, wanted: Wanted) -> Table:
    """Read and check a CSV file.

    Raises:
        DataError: the file is missing, empty or not such a file, or its rows are not what is wanted.
    """
    try:
        with _open(path) as file:
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = _header(next(reader, []), path)
            try:
                number_names, string_names = used_columns(header, wanted)
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
            numbers: dict[str, list[Array]] = {name: [] for name in number_names}
            strings: dict[str, list[str]] = {name: [] for name in string_names}
            for first_row, chunk in _chunks(reader, len(header), path):
                cells = list(zip(*chunk, strict=True))  # one tuple per column
                for name, parts in numbers.items():
                    parts.append(to_numbers(cells[header.index(name)], name, str(path), first_row))
                for name, values in strings.items():
                    values.extend(cells[header.index(name)])
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path (relative paths start at {Path.cwd()})") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 CSV ({error}); expected commas and a header line") from error
    joined = {name: np.concatenate([np.empty(0), *parts]) for name, parts in numbers.items()}
    return table_from_columns(header, joined, strings, wanted, str(path))


def _header(header: Sequence[str], path: Path) -> list[str]:
    names = [name.strip() for name in header]
    if not names:
        raise DataError(f"{path}: the file is empty; expected a header line and rows")
    unnamed = [number for number, name in enumerate(names, 1) if not name]
    if unnamed:
        raise DataError(f"{path}: column {unnamed[0]} has no name; write the file without its row index")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two columns of one name: {', '.join(twice)}; rename or drop one")
    return names


def _chunks(reader: Iterator[list[str]], width: int, path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """Rows by the chunk, with the number of each chunk's first data row; blank lines do not count."""
    rows = (row for row in reader if row)
    first_row = 1
    while chunk := list(islice(rows, CHUNK)):
        for number, row in enumerate(chunk, first_row):
            if len(row) != width:
                raise DataError(
                    f"{path}: data row {number} has {len(row)} fields, the header has {width}; "
                    "put cells that hold commas in double quotes"
                )
        yield first_row, chunk
        first_row += len(chunk)


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
