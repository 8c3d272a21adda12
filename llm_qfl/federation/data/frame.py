"""From a pandas frame to a `Table`: what CSV files and hub data sets share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llm_qfl.federation.data.table import (
    UNKNOWN,
    Table,
    Wanted,
    check_finite,
    check_sequences,
    code_labels,
    order_columns,
)
from llm_qfl.federation.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

SEQUENCE_COLUMNS = ("sequence", "seq")  # the second is what Genomic Benchmarks calls it on the hub


def string_columns(header: list[str], wanted: Wanted) -> list[str]:
    """The columns that are read as text, never as numbers: labels keep the letters they have in the file."""
    words = {wanted.label_column, wanted.text_column, wanted.group_column, *SEQUENCE_COLUMNS}
    return [name for name in header if name in words]


def raw_columns(header: list[str], wanted: Wanted) -> tuple[str, list[str]]:
    """Kind of the rows and their raw columns.

    A sequence column wins over a text column, which wins over numbers; beside either, other columns are not read.
    """
    for kind, names in (("sequence", SEQUENCE_COLUMNS), ("text", (wanted.text_column,))):
        there = [name for name in names if name in header and name != wanted.label_column]
        if there:
            return kind, there[:1]
    return "columns", [name for name in header if name not in (wanted.label_column, wanted.group_column)]


def table_from_frame(frame: pd.DataFrame, wanted: Wanted, where: str) -> Table:
    """Check a frame and make it a table. Label, text, sequence and group columns hold strings ("" where empty).

    Raises:
        DataError: no label column, no rows, a column that is not numeric, values that are not finite, other columns
            than expected, labels outside the list.
    """
    header = [str(name) for name in frame.columns]
    _check_header(header, wanted, where)
    if not len(frame):
        raise DataError(f"{where}: no rows; expected a header line and at least one row")
    labels, class_names, kept = _labels(frame, header, wanted, where)
    kind, found = raw_columns(header, wanted)
    columns = tuple(order_columns(found, wanted.expect_columns, where))
    group = wanted.group_column
    groups = None if group is None else tuple(np.asarray(frame[group], object)[kept])
    common = (columns, labels, class_names)
    if kind == "columns":
        values = _numbers(frame, columns, where)[kept]
        return Table("columns", *common, values=values, groups=groups)
    strings = [str(value) for value in frame[columns[0]]]
    if kind == "sequence":
        sequences = check_sequences(strings, columns[0], where)
        return Table("sequence", *common, sequences=tuple(sequences[i] for i in kept), groups=groups)
    empty = [row for row, value in enumerate(strings, 1) if not value.strip()]
    if empty:
        raise DataError(
            f"{where}: {len(empty)} empty texts in column {columns[0]!r}, the first in data row {empty[0]}; "
            "fill them in or leave those rows out"
        )
    return Table("text", *common, texts=tuple(strings[i] for i in kept), groups=groups)


def _check_header(header: list[str], wanted: Wanted, where: str) -> None:
    listed = ", ".join(header[:8]) + (", ..." if len(header) > 8 else "")
    if wanted.labelled and wanted.label_column not in header:
        raise DataError(
            f"{where}: no label column {wanted.label_column!r} among {listed}; name it in data.label-column"
        )
    if wanted.group_column is not None and wanted.group_column not in header:
        raise DataError(f"{where}: no column {wanted.group_column!r} (data.partition-column) among {listed}")
    if not raw_columns(header, wanted)[1]:
        raise DataError(f"{where}: no column beside the label; expected numbers, a sequence or a text column")


def _labels(
    frame: pd.DataFrame, header: list[str], wanted: Wanted, where: str
) -> tuple[np.ndarray[Any, np.dtype[np.intp]], tuple[str, ...], np.ndarray[Any, np.dtype[np.intp]]]:
    if wanted.label_column not in header:
        return np.full(len(frame), UNKNOWN, np.intp), wanted.classes or (), np.arange(len(frame))
    names = [str(name).strip() for name in frame[wanted.label_column]]
    empty = [row for row, name in enumerate(names, 1) if not name]
    if empty:
        raise DataError(
            f"{where}: {len(empty)} rows without a label in column {wanted.label_column!r}, the first is data row "
            f"{empty[0]}; fill them in or leave those rows out"
        )
    return code_labels(names, wanted, where)


def _numbers(frame: pd.DataFrame, columns: tuple[str, ...], where: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    import pandas as pd

    for name in columns:
        if frame[name].dtype.kind in "iufb":
            continue
        bad = pd.to_numeric(frame[name], errors="coerce").isna().to_numpy() & frame[name].notna().to_numpy()
        row = int(np.flatnonzero(bad)[0]) if bad.any() else 0
        raise DataError(
            f"{where}: column {name!r} is not numeric: expected a number in data row {row + 1}, "
            f"got {str(frame[name].iloc[row])[:40]!r}; encode it as numbers or leave the column out"
        )
    values = np.ascontiguousarray(frame[list(columns)].to_numpy(np.float64))
    check_finite(values, columns, where)
    return values
