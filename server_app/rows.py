"""Rows that the server holds: hold-outs of the pool, or files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.partition import Deal
from llm_qfl.federation.data.pool import Pool, fractions, read_pool
from llm_qfl.federation.data.split import ON_SERVER, PARTS, make_split
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Array, Labels, Rows

Features = Callable[[Sequence[str]], Array]


def server_rows(config: RunConfig, setup: Setup, part: str, features: Features | None = None) -> Rows | None:
    """The server's validation or test rows as features; None where the sites hold them.

    Args:
        config: the run config.
        setup: classes, encoding and feature map.
        part: `validation` or `test`.
        features: makes numbers of texts, where a language model does.

    Raises:
        DataError: a file that does not fit the run, or no row at all; texts and nothing that makes numbers of them.
    """
    held = server_pool(config, setup, part)
    if held is None:
        return None
    pool, chosen, labels = held
    if pool.encoding != "language":
        numbers = pool.x[chosen]
    elif features is None or pool.table.texts is None:
        raise DataError("data.encoding: language makes numbers of texts by the language model; the server has none")
    else:
        numbers = features([pool.table.texts[row] for row in chosen])
    return Rows(np.ascontiguousarray(setup.feature_map.transform(numbers)), labels)


def server_pool(config: RunConfig, setup: Setup, part: str) -> tuple[Pool, Labels, Labels] | None:
    """The pool that holds the server's rows of a part, which rows, and their classes; None where sites hold them.

    Args:
        config: the run config.
        setup: classes and columns.
        part: `validation` or `test`.

    Raises:
        DataError: a file that does not fit the run, or no row at all.
    """
    data = config.data
    source = data.validation if part == "validation" else data.test
    if source == "federated":
        return None
    if source == "server":
        pool = read_pool(data.source, data)
        # The server's cuts come before the deal and do not depend on it: one site will do.
        table = make_split(pool.y, Deal("iid", 1, config.server.seed), fractions(data))
        chosen = np.flatnonzero((table.site == ON_SERVER) & (table.part == PARTS.index(part)))
    else:
        pool = read_pool(source, data, role="fixed", classes=setup.class_names, columns=setup.columns)
        chosen = np.arange(len(pool.y))
    if not len(chosen):
        raise DataError(f"data.{part}={source!r} leaves the server without {part} rows; raise data.{part}-fraction")
    order = np.array([setup.class_names.index(name) for name in pool.class_names], np.intp)
    return pool, chosen, order[pool.y[chosen]]
