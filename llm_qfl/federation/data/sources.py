"""Where rows come from: `load_table(source)` for every word that `data.source` takes.

- `breast-cancer`, `digits`: in scikit-learn, no network.
- `csv:<path>` (also `.csv.gz`; `file:<path>` is the same): numeric columns, or a `sequence` (or `seq`) column, or a
  text column, and a label column.
- `hub:<dataset>[:<config>][#<split>]`: through flwr-datasets; `<dataset>` may be a folder on disk. The DNA and tweet
  tables of the README on the public sets:
  `hub:katarinagresova/Genomic_Benchmarks_demo_human_or_worm` (`seq`, `label`; its test rows are `...#test`) and
  `hub:cardiffnlp/tweet_eval:sentiment` (`text`, `label`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from llm_qfl.federation.data.table import Role, Table, Wanted, code_labels, order_columns
from llm_qfl.federation.errors import DataError

BUILT_IN = ("breast-cancer", "digits")


def load_table(
    source: str,
    *,
    label_column: str = "label",
    text_column: str = "text",
    classes: tuple[str | int, ...] | None = None,
    role: Role = "pool",
    expect_columns: tuple[str, ...] | None = None,
    group_column: str | None = None,
    answer_column: str | None = None,
) -> Table:
    """Read and check a table; what the arguments mean is in `Wanted`.

    Args:
        source: a word that `data.source` takes.
        label_column: column of the labels.
        text_column: column of the text.
        classes: labels in the order of the outputs, as the source writes them.
        role: `pool`, `site` (one file of many) or `fixed` (with the list of classes that the server fixed).
        expect_columns: raw columns that the rows must have.
        group_column: column for the `column` partitioner.
        answer_column: column of what is to be written after a text.

    Raises:
        DataError: with file, row, column and what to do.
    """
    names = None if classes is None else tuple(str(name) for name in classes)
    wanted = Wanted(label_column, text_column, names, role, expect_columns, group_column, answer_column=answer_column)
    kind, _, rest = source.partition(":")
    if source in BUILT_IN:
        return _scikit_learn(source, wanted)
    if kind in ("csv", "file") and rest:
        from llm_qfl.federation.data.csv_source import read_csv

        return read_csv(Path(rest).expanduser(), wanted)
    if kind == "hub" and rest:
        from llm_qfl.federation.data.hub_source import read_hub

        return read_hub(rest, wanted)
    raise DataError(f"data.source: expected {', '.join(BUILT_IN)}, csv:<path> or hub:<dataset>, got {source!r}")


def _scikit_learn(source: str, wanted: Wanted) -> Table:
    from sklearn.datasets import load_breast_cancer, load_digits

    load: Callable[[], object] = load_breast_cancer if source == "breast-cancer" else load_digits
    bunch = load()
    columns = [str(name) for name in bunch.feature_names]  # type: ignore[attr-defined]
    names = [str(bunch.target_names[code]) for code in bunch.target]  # type: ignore[attr-defined]
    if wanted.group_column is not None:
        raise DataError(f"{source}: it has no column to deal rows by; choose another data.partitioner")
    if wanted.answer_column is not None:
        raise DataError(f"{source}: its rows are numbers, without answers; data.answer-column belongs to texts")
    order = order_columns(columns, wanted.expect_columns, source)
    labels, class_names, kept = code_labels(names, wanted, source)
    values = np.asarray(bunch.data, np.float64)[kept][:, [columns.index(c) for c in order]]  # type: ignore[attr-defined]
    return Table("columns", tuple(order), labels, class_names, values=values)
