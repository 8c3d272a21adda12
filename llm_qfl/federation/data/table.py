"""Rows as they come from a source, before they are numbers: one frozen `Table`, whatever the source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_qfl.federation.errors import DataError
from llm_qfl.federation.types import Array, Labels

Kind = Literal["columns", "sequence", "text"]

Role = Literal["pool", "site", "fixed"]

UNKNOWN = -1  # label of a row without one (prediction)


@dataclass(frozen=True)
class Wanted:
    """What the reader of a table asks for.

    Attributes:
        label_column: column of the labels.
        text_column: column of the text, where there is one.
        classes: labels in the order of the outputs; None takes every label, sorted.
        role: what the rows are. `pool`: all rows of a run; rows of labels that are not in `classes` are dropped, a
            class without rows is an error. `site`: one site of many; others are dropped, classes may be absent.
            `fixed`: `classes` is the list that the server fixed; another label is an error, classes may be absent.
        expect_columns: raw columns that the rows must have, in the order wanted; None takes what is there.
        group_column: column for the `column` partitioner; it is no feature.
        labelled: False accepts a table without the label column (prediction): all labels are `UNKNOWN`.
        answer_column: column of what is to be written after a text, for texts alone.
    """

    label_column: str = "label"
    text_column: str = "text"
    classes: tuple[str, ...] | None = None
    role: Role = "pool"
    expect_columns: tuple[str, ...] | None = None
    group_column: str | None = None
    labelled: bool = True
    answer_column: str | None = None

    @property
    def apart(self) -> tuple[str, ...]:
        """Columns that are no features."""
        return tuple(name for name in (self.label_column, self.group_column, self.answer_column) if name is not None)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one source. Exactly one of `values`, `sequences` and `texts` is there, as `kind` says.

    Attributes:
        kind: `columns`, `sequence` or `text`.
        columns: names of the raw columns: the features, or the one column of sequences or texts.
        labels: (N,) 0..C-1 in the order of `class_names`, or `UNKNOWN`.
        class_names: labels as the source writes them.
        values: (N, D) float64, finite.
        sequences: N strings of A, C, G, T and N, upper case.
        texts: N strings.
        groups: N values of the group column, or None.
        answers: N strings to be written after the texts, or None.
    """

    kind: Kind
    columns: tuple[str, ...]
    labels: Labels
    class_names: tuple[str, ...]
    values: Array | None = None
    sequences: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    answers: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Labels) -> Table:
        """The rows of these indices (M,), in this order."""

        def pick(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[i] for i in rows)

        values = None if self.values is None else self.values[rows]
        strings = (pick(found) for found in (self.sequences, self.texts, self.groups, self.answers))
        return Table(self.kind, self.columns, self.labels[rows], self.class_names, values, *strings)


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels in the one order that every side uses: numbers by value, then words by letter."""

    def order(name: str) -> tuple[int, float, str]:
        try:
            return (0, float(name), name)
        except ValueError:
            return (1, 0.0, name)

    return tuple(sorted(set(names), key=order))


def code_labels(names: Sequence[str], wanted: Wanted, where: str) -> tuple[Labels, tuple[str, ...], Labels]:
    """Labels as numbers.

    Returns:
        codes (M,), class names, and the kept rows (M,).

    Raises:
        DataError: a label that is not in the list, a class without rows, or no row left.
    """
    found = sorted_classes(names)
    classes = wanted.classes or found
    unknown = [name for name in found if name not in classes]
    if unknown and wanted.role == "fixed":
        row = next(i for i, name in enumerate(names, 1) if name in unknown)
        raise DataError(
            f"{where}: expected the labels {_some(classes)}, got {unknown[0]!r} (first at data row {row}); "
            "correct the label column or set data.classes to the labels to keep"
        )
    missing = [name for name in classes if name not in found]
    if missing and (wanted.role == "pool" or len(missing) == len(classes)):
        raise DataError(
            f"{where}: no row of class {_some(missing)}; the labels there are {_some(found)}; "
            "correct data.classes or the label column"
        )
    code = {name: number for number, name in enumerate(classes)}
    kept = np.array([i for i, name in enumerate(names) if name in code], np.intp)
    return np.array([code[names[i]] for i in kept], np.intp), tuple(classes), kept


def check_finite(values: Array, columns: Sequence[str], where: str) -> None:
    """Refuse NaN and infinite values.

    Raises:
        DataError: with their number, the first row (counted from 1, without the header) and its column.
    """
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{where}: {len(bad)} values are missing or not finite in {len(set(bad[:, 0]))} rows, the first in data "
            f"row {row + 1}, column {columns[column]!r}; fill them in or leave those rows out"
        )


def order_columns(found: Sequence[str], expected: Sequence[str] | None, where: str) -> list[str]:
    """The feature columns in the expected order.

    Raises:
        DataError: missing or unknown columns, by name.
    """
    if expected is None:
        return list(found)
    missing, unknown = [c for c in expected if c not in found], [c for c in found if c not in expected]
    if missing or unknown:
        raise DataError(
            f"{where}: other columns than expected: missing {_some(missing)}, unknown {_some(unknown)}; "
            f"expected {len(expected)} columns ({_some(expected)})"
        )
    return list(expected)


def check_sequences(sequences: Sequence[str], column: str, where: str) -> tuple[str, ...]:
    """Sequences in upper case.

    Raises:
        DataError: a letter other than A, C, G, T, N, or an empty sequence, with its data row (from 1).
    """
    upper = tuple(sequence.strip().upper() for sequence in sequences)
    allowed = str.maketrans("", "", "ACGTN")
    for row, sequence in enumerate(upper, 1):
        rest = sequence.translate(allowed)
        if rest or not sequence:
            got = f"the letter {rest[0]!r}" if rest else "an empty sequence"
            raise DataError(
                f"{where}: data row {row}, column {column!r}: expected the letters A, C, G, T, N, got {got}; "
                "correct or leave out that row"
            )
    return upper


def _some(names: Iterable[object], most: int = 6) -> str:
    listed = [str(name) for name in names]
    return (", ".join(listed[:most]) + (f", ... ({len(listed)})" if len(listed) > most else "")) or "none"
