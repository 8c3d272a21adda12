"""`data.partitioner`: dealing the rows of a pool to simulated sites, by flwr-datasets' partitioners."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llm_qfl.federation.errors import DataError
from llm_qfl.federation.seeding import SERVER, seed_of
from llm_qfl.federation.types import Labels

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

PARTITIONERS = ("iid", "dirichlet", "shard", "column")
SHARDS_PER_SITE = 2  # of rows sorted by label, as in McMahan et al. 2017 (arXiv 1602.05629)
DRAWS = 20


@dataclass(frozen=True)
class Deal:
    """How rows are dealt.

    Attributes:
        partitioner: `iid`, `dirichlet`, `shard` or `column`.
        sites: number of sites.
        seed: of the run.
        alpha: concentration of `dirichlet`; small is uneven.
        min_rows: fewest rows of a site.
    """

    partitioner: str
    sites: int
    seed: int
    alpha: float = 0.5
    min_rows: int = 1


def partition(labels: Labels, deal: Deal, column_values: Sequence[str] | None = None) -> tuple[Labels, ...]:
    """Rows of each site, ascending; every row goes to exactly one site. Equal questions are answered from memory.

    `column` gives each distinct value a site of its own, in the order of `sorted`. The first use in a process
    imports flwr-datasets, which takes seconds (it brings pandas, pyarrow and seaborn).

    Args:
        labels: (N,) label codes.
        deal: how.
        column_values: (N,) values of the partition column, for `column`.

    Raises:
        DataError: fewer rows than sites, another number of values than sites, or no draw gave every site its rows.
    """
    values = None if column_values is None else tuple(column_values)
    return _partition(np.ascontiguousarray(labels, np.int64).tobytes(), deal, values)


@lru_cache(maxsize=4)
def _partition(labels: bytes, deal: Deal, values: tuple[str, ...] | None) -> tuple[Labels, ...]:
    codes = np.frombuffer(labels, np.int64)
    _check(len(codes), deal, values)
    if deal.sites == 1:  # nothing to deal: no need to wait for the import
        return (_frozen(np.arange(len(codes))),)
    draws = DRAWS if deal.partitioner == "dirichlet" else 1  # the others always deal the same numbers of rows
    for draw in range(draws):
        rows = _draw(codes, deal, values, draw)
        if rows is not None:
            return rows
    remedy = {
        "dirichlet": f"raise data.alpha (now {deal.alpha:g}), run fewer sites, or use data.partitioner=iid",
        "column": "merge small values of the column, or bring more rows",
    }.get(deal.partitioner, "run fewer sites or bring more rows")
    raise DataError(
        f"data.partitioner: {deal.partitioner} over {deal.sites} sites leaves a site with fewer than {deal.min_rows} "
        f"of the {len(codes)} rows, in {draws} draws; {remedy}"
    )


def _check(rows: int, deal: Deal, values: tuple[str, ...] | None) -> None:
    if deal.partitioner not in PARTITIONERS:
        raise DataError(f"data.partitioner: expected one of {', '.join(PARTITIONERS)}, got {deal.partitioner!r}")
    if deal.sites < 1 or rows < deal.sites * max(deal.min_rows, 1):
        raise DataError(
            f"data.partitioner: {rows} rows cannot give {deal.sites} sites {max(deal.min_rows, 1)} rows each; "
            "run fewer sites or bring more rows"
        )
    if deal.partitioner != "column":
        return
    if values is None or len(values) != rows:
        raise DataError("data.partitioner: column needs data.partition-column, a column of the source")
    if (distinct := len(set(values))) != deal.sites:
        raise DataError(
            f"data.partition-column: {distinct} different values, expected one for each of the {deal.sites} sites; "
            f"run {distinct} sites"
        )


def _draw(codes: Labels, deal: Deal, values: tuple[str, ...] | None, draw: int) -> tuple[Labels, ...] | None:
    """One deal; None as soon as a site has too few rows."""
    from datasets import Dataset

    seed = seed_of(deal.seed, SERVER, 0, f"partition/{draw}") % 2**32
    # flwr-datasets' IidPartitioner cuts consecutive rows, so rows are shuffled first, as its FederatedDataset does.
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(codes))
    columns: dict[str, list[int] | list[str]] = {"row": order.tolist(), "label": codes[order].tolist()}
    if values is not None:
        columns["group"] = [values[i] for i in order]
    partitioner = _partitioner(deal, len(codes), seed)
    partitioner.dataset = Dataset.from_dict(columns)
    parts: list[Labels] = []
    # NaturalIdPartitioner draws a progress bar; ShardPartitioner sorts in a way that pyarrow 25 warns of.
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specifying null_placement", FutureWarning)
        for site in range(deal.sites):
            rows = np.sort(np.asarray(partitioner.load_partition(site)["row"], np.intp))
            if len(rows) < deal.min_rows:
                return None
            parts.append(_frozen(rows))
    return tuple(parts)


def _frozen(rows: Labels) -> Labels:
    rows.setflags(write=False)
    return rows


def _partitioner(deal: Deal, rows: int, seed: int) -> Partitioner:
    from flwr_datasets.partitioner import (
        DirichletPartitioner,
        IidPartitioner,
        NaturalIdPartitioner,
        ShardPartitioner,
    )

    if deal.partitioner == "iid":
        return IidPartitioner(num_partitions=deal.sites)
    if deal.partitioner == "dirichlet":
        return DirichletPartitioner(deal.sites, "label", deal.alpha, min_partition_size=0, shuffle=False, seed=seed)
    if deal.partitioner == "shard":
        # With a shard size, and incomplete shards kept, no row is lost.
        size = max(1, rows // (SHARDS_PER_SITE * deal.sites))
        return ShardPartitioner(
            deal.sites, "label", shard_size=size, keep_incomplete_shard=True, shuffle=False, seed=seed
        )
    return NaturalIdPartitioner("group")
