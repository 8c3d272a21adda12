"""`csv:<path>`: a comma-separated UTF-8 file with one header line, plain or gzip."""

from __future__ import annotations

import csv
import gzip
import zlib
from pathlib import Path
from typing import TextIO

from llm_qfl.federation.data.frame import raw_columns, string_columns, table_from_frame
from llm_qfl.federation.data.table import Table, Wanted
from llm_qfl.federation.errors import DataError

# Only in numeric columns: a text may well read "None".
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")


def read_csv(path: Path, wanted: Wanted) -> Table:
    """Read and check a CSV file.

    Raises:
        DataError: the file is missing, empty or not such a file, or its rows are not what is wanted.
    """
    import pandas as pd

    where = str(path)
    try:
        header = _header(path)
        strings = string_columns(header, wanted)
        kind, features = raw_columns(header, wanted)
        used = features if kind != "columns" else [name for name in header if name not in strings]
        read = [name for name in header if name in used or name in (wanted.label_column, wanted.group_column)]
        frame = pd.read_csv(
            path,
            usecols=read,
            dtype={name: str for name in read if name in strings},
            keep_default_na=False,
            na_values={name: list(MISSING) for name in read if name not in strings},
            index_col=False,
            skipinitialspace=True,
            low_memory=False,  # one type per column, whatever its length
        )
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file; check the path (relative paths start at {Path.cwd()})") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, pd.errors.ParserError) as error:
        raise DataError(f"{where}: cannot be read as UTF-8 CSV ({error}); expected commas and a header line") from error
    return table_from_frame(frame[read], wanted, where)


def _header(path: Path) -> list[str]:
    with _open(path) as file:
        header = next(csv.reader(file, skipinitialspace=True), [])
    if not header:
        raise DataError(f"{path}: the file is empty; expected a header line and rows")
    unnamed = [number for number, name in enumerate(header, 1) if not name.strip()]
    if unnamed:
        raise DataError(f"{path}: column {unnamed[0]} has no name; write the file without its row index")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two columns of one name: {', '.join(twice)}; rename or drop one")
    return header


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
