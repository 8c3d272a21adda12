"""From named columns to a `Table`: what CSV files and hub data sets share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

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
from llm_qfl.federation.types import Array, Labels

SEQUENCE_COLUMNS = ("sequence", "seq")  # the second is what Genomic Benchmarks calls it on the hub
# What stands for a missing number. Only in numeric columns: a text may well read "None".
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"})


def raw_columns(header: Sequence[str], wanted: Wanted) -> tuple[Literal["columns", "sequence", "text"], list[str]]:
    """Kind of the rows and their raw columns.

    A sequence column wins over a text column, which wins over numbers; beside either, other columns are not read.
    """
    sequence = [name for name in SEQUENCE_COLUMNS if name in header and name not in wanted.apart]
    if sequence:
        return "sequence", sequence[:1]
    if wanted.text_column in header and wanted.text_column not in wanted.apart:
        return "text", [wanted.text_column]
    return "columns", [name for name in header if name not in wanted.apart]


def used_columns(header: Sequence[str], wanted: Wanted) -> tuple[list[str], list[str]]:
    """Columns that are read as numbers, and those that are read as they are written.

    Raises:
        DataError: no label, partition or answer column, nothing beside them, or answers to rows that are no texts.
    """
    listed = ", ".join(header[:8]) + (", ..." if len(header) > 8 else "")
    if wanted.labelled and wanted.label_column not in header:
        raise DataError(f"no label column {wanted.label_column!r} among {listed}; name it in data.label-column")
    if wanted.group_column is not None and wanted.group_column not in header:
        raise DataError(f"no column {wanted.group_column!r} (data.partition-column) among {listed}")
    kind, raw = raw_columns(header, wanted)
    if wanted.answer_column is not None and wanted.answer_column not in header:
        raise DataError(f"no column {wanted.answer_column!r} (data.answer-column) among {listed}")
    if wanted.answer_column is not None and kind != "text":
        raise DataError(
            f"data.answer-column: answers belong to texts, and there is no column {wanted.text_column!r} "
            f"(data.text-column) of texts among {listed}"
        )
    if not raw:
        raise DataError("no column beside the label; expected numbers, a sequence or a text column")
    apart = [name for name in header if name in wanted.apart]
    return (raw, apart) if kind == "columns" else ([], apart + raw)


def table_from_columns(
    header: Sequence[str],
    numbers: Mapping[str, Array],
    strings: Mapping[str, Sequence[str]],
    wanted: Wanted,
    where: str,
) -> Table:
    """Check columns and make them a table.

    Args:
        header: all column names of the source.
        numbers: (N,) float64 per column, NaN where missing; which ones, `used_columns` says.
        strings: N strings per column.
        wanted: what is asked for.
        where: the source's name for messages.

    Raises:
        DataError: no rows, values that are not finite, empty cells, other columns than expected, labels outside the
            list.
    """
    rows = [*(len(cells) for cells in strings.values()), *(len(values) for values in numbers.values())][0]
    if not rows:
        raise DataError(f"{where}: no rows; expected a header line and at least one row")
    labels, class_names, kept = _labels(strings.get(wanted.label_column), rows, wanted, where)
    kind, found = raw_columns(header, wanted)
    columns = tuple(order_columns(found, wanted.expect_columns, where))
    groups = None
    if wanted.group_column is not None:
        groups = tuple(strings[wanted.group_column][i] for i in kept)
    if kind == "columns":
        values = np.stack([numbers[name] for name in columns], axis=1)
        check_finite(values, columns, where)
        return Table("columns", columns, labels, class_names, values=values[kept], groups=groups)
    cells = strings[columns[0]]
    if kind == "sequence":
        sequences = check_sequences(cells, columns[0], where)
        kept_ones = tuple(sequences[i] for i in kept)
        return Table("sequence", columns, labels, class_names, sequences=kept_ones, groups=groups)
    _refuse_empty(cells, f"{where}: {{}} empty texts in column {columns[0]!r}, the first in data row {{}}")
    texts, answers = tuple(cells[i] for i in kept), None
    if wanted.answer_column is not None:
        written = strings[wanted.answer_column]
        empty = f"{where}: {{}} empty answers in column {wanted.answer_column!r}, the first in data row {{}}"
        _refuse_empty(written, empty)
        answers = tuple(written[i] for i in kept)
    return Table("text", columns, labels, class_names, texts=texts, groups=groups, answers=answers)


def to_numbers(cells: Sequence[str], name: str, where: str, first_row: int = 1) -> Array:
    """Written numbers as float64, exactly; NaN where missing.

    Raises:
        DataError: something else, with its data row (from 1).
    """
    try:
        return np.array(cells, np.float64)
    except ValueError:  # find out what, and take the words for missing
        values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        if cell.strip() in MISSING:
            continue
        try:
            values[row] = float(cell)
        except ValueError as error:
            raise DataError(
                f"{where}: column {name!r} is not numeric: expected a number in data row {first_row + row}, "
                f"got {cell[:40]!r}; encode it as numbers or leave the column out"
            ) from error
    return values


def _labels(
    cells: Sequence[str] | None, rows: int, wanted: Wanted, where: str
) -> tuple[Labels, tuple[str, ...], Labels]:
    if cells is None:
        return np.full(rows, UNKNOWN, np.intp), wanted.classes or (), np.arange(rows)
    names = [name.strip() for name in cells]
    _refuse_empty(
        names, f"{where}: {{}} rows without a label in column {wanted.label_column!r}, the first is data row {{}}"
    )
    return code_labels(names, wanted, where)


def _refuse_empty(cells: Sequence[str], message: str) -> None:
    empty = [row for row, cell in enumerate(cells, 1) if not cell.strip()]
    if empty:
        raise DataError(message.format(len(empty), empty[0]) + "; fill them in or leave those rows out")
