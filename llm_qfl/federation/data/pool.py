"""A source's rows as numbers, loaded and encoded once a process; both sides cut them by the one split table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llm_qfl.federation.config import DataConfig
from llm_qfl.federation.data.encodings import encode, resolve_encoding
from llm_qfl.federation.data.sources import load_table
from llm_qfl.federation.data.split import Fractions
from llm_qfl.federation.data.table import Role, Table
from llm_qfl.federation.settings import project_folder
from llm_qfl.federation.types import Array, Labels


@dataclass(frozen=True, eq=False)
class Pool:
    """Encoded rows.

    Attributes:
        x: (N, D) numbers, before the feature map; (N, 0) where a language model makes them.
        y: (N,) label codes in the order of `class_names`.
        class_names: labels as the source writes them.
        columns: raw columns.
        encoding: what made the numbers.
        groups: (N,) values of the partition column, or None.
        names: names of the D numbers.
        table: the rows as the source has them.
    """

    x: Array
    y: Labels
    class_names: tuple[str, ...]
    columns: tuple[str, ...]
    encoding: str
    groups: tuple[str, ...] | None
    names: tuple[str, ...]
    table: Table


def read_pool(
    source: str,
    data: DataConfig,
    *,
    role: Role = "pool",
    classes: tuple[str, ...] | None = None,
    columns: tuple[str, ...] | None = None,
) -> Pool:
    """Load and encode a source; equal questions are answered from memory.

    Args:
        source: a word that `data.source` takes, or `file:<path>`.
        data: the run's.
        role: `pool`, `site` (one file of many) or `fixed` (with the classes that the server fixed).
        classes: the classes; by default those of the config.
        columns: raw columns that the rows must have.

    Raises:
        DataError: with file, row, column and what to do.
    """
    return _read(_absolute(source), data, role, classes if classes is not None else data.class_list, columns)


@lru_cache(maxsize=8)
def _read(
    source: str, data: DataConfig, role: Role, classes: tuple[str, ...] | None, columns: tuple[str, ...] | None
) -> Pool:
    group = data.partition_column if role == "pool" and data.partitioner == "column" else None
    table = load_table(
        source,
        label_column=data.label_column,
        text_column=data.text_column,
        classes=classes,
        role=role,
        expect_columns=columns,
        group_column=group,
        answer_column=None if data.answer_column == "none" else data.answer_column,
    )
    encoding = resolve_encoding(table.kind, data.encoding)
    x, names = encode(table, encoding, k=data.k)
    for array in (x, table.labels):
        array.setflags(write=False)
    return Pool(x, table.labels, table.class_names, table.columns, encoding, table.groups, names, table)


def fractions(data: DataConfig) -> Fractions:
    """Shares of the rows that never train, by the configuration."""
    return Fractions(
        server_test=data.test_fraction if data.test == "server" else 0.0,
        server_validation=data.validation_fraction if data.validation == "server" else 0.0,
        site_test=data.test_fraction if data.test == "federated" else 0.0,
        site_validation=data.validation_fraction,
    )


def _absolute(source: str) -> str:
    """Relative paths start at the project; a hub name that is a folder there is that folder."""
    kind, _, rest = source.partition(":")
    if kind in ("csv", "file") and rest:
        return f"{kind}:{project_folder() / Path(rest).expanduser()}"
    if kind == "hub" and rest.startswith((".", "~", "/")):
        return f"{kind}:{project_folder() / Path(rest).expanduser()}"
    return source
