"""The one split table: for each row of the pool, whose it is and which part. Everything else reads it.

A row is in one place because the table holds one site and one part for it. The order of the cuts: the server's test
rows, the server's validation rows, the deal to the sites, and within each site its own test and validation rows.
Fractions are of the rows that the cuts before have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llm_qfl.federation.data.partition import Deal, partition
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.federation.types import Labels

ON_SERVER = -1
PARTS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)


@dataclass(frozen=True)
class Fractions:
    """Shares of rows that never train; 0 where that part is a file or somebody else's.

    Attributes:
        server_test: of the pool, on the server.
        server_validation: of the pool without the server's test rows, on the server.
        site_test: of each site's rows.
        site_validation: of each site's rows without its test rows.
    """

    server_test: float = 0.0
    server_validation: float = 0.0
    site_test: float = 0.0
    site_validation: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < 1:
                raise DataError(f"split: {name} expected a share from 0 to below 1, got {value}")


@dataclass(frozen=True, eq=False)
class SplitTable:
    """Where every row of the pool is.

    Attributes:
        site: (N,) number of the site, or `ON_SERVER`.
        part: (N,) `TRAIN`, `VALIDATION` or `TEST`.
        sites: number of sites.
    """

    site: Labels
    part: Labels
    sites: int

    def __post_init__(self) -> None:
        rows, counts = len(self.site), np.bincount(self.site - ON_SERVER, minlength=self.sites + 1)
        if self.part.shape != (rows,) or len(counts) != self.sites + 1 or not np.isin(self.part, range(3)).all():
            raise DataError("split: every row needs one site and one part")
        if (self.part[self.site == ON_SERVER] == TRAIN).any():
            raise DataError("split: the server holds out rows and trains on none")

    def rows(self, site: int, part: int) -> Labels:
        """Rows (ascending) of one part of one site, or of the server (`ON_SERVER`)."""
        return np.flatnonzero((self.site == site) & (self.part == part))


@dataclass(frozen=True)
class SiteRows:
    """Rows of one site by class, for reports: (C,) counts of each part."""

    site: str
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def site_name(number: int) -> str:
    """Name of a simulated site: `site-0000`, `site-0001`, ..."""
    return f"site-{number:04d}"


def make_split(
    labels: Labels, deal: Deal, fractions: Fractions, column_values: Sequence[str] | None = None
) -> SplitTable:
    """The split table of a pool; equal questions are answered from memory, so every site may ask.

    Args:
        labels: (N,) label codes.
        deal: how the rows that the server does not hold out are dealt.
        fractions: shares that never train.
        column_values: (N,) values of the partition column, for the `column` partitioner.

    Raises:
        DataError: too few rows for the sites, or no draw gave every site its rows.
    """
    values = None if column_values is None else tuple(column_values)
    return _make_split(np.ascontiguousarray(labels, np.int64).tobytes(), deal, fractions, values)


@lru_cache(maxsize=4)
def _make_split(labels: bytes, deal: Deal, fractions: Fractions, values: tuple[str, ...] | None) -> SplitTable:
    codes = np.frombuffer(labels, np.int64)
    site = np.full(len(codes), ON_SERVER, np.intp)
    part = np.full(len(codes), TRAIN, np.intp)
    left = np.arange(len(codes))
    for share, kind, purpose in (
        (fractions.server_test, TEST, "split/test"),
        (fractions.server_validation, VALIDATION, "split/validation"),
    ):
        held = _hold_out(codes[left], share, stream(deal.seed, SERVER, 0, purpose))
        part[left[held]] = kind
        left = left[~held]
    dealt = partition(codes[left], deal, None if values is None else [values[i] for i in left])
    for number, local in enumerate(dealt):
        rows = left[local]
        site[rows] = number
        part[rows] = split_site(codes[rows], deal.seed, site_name(number), fractions)
    for array in (site, part):
        array.setflags(write=False)
    return SplitTable(site, part, deal.sites)


def split_site(labels: Labels, seed: int, site: str, fractions: Fractions) -> Labels:
    """Parts (n,) of one site's rows: the same in simulation and for a site with its own file.

    Stratified; a class keeps at least one row for training, so a site of few rows may have no validation rows.

    Args:
        labels: (n,) label codes of the site's rows, in their order.
        seed: of the run.
        site: the site's name.
        fractions: `site_test` and `site_validation` count.
    """
    part = np.full(len(labels), TRAIN, np.intp)
    left = np.arange(len(labels))
    for share, kind, purpose in (
        (fractions.site_test, TEST, "split/test"),
        (fractions.site_validation, VALIDATION, "split/validation"),
    ):
        held = _hold_out(labels[left], share, stream(seed, site, 0, purpose))
        part[left[held]] = kind
        left = left[~held]
    return part


def describe(table: SplitTable, labels: Labels, classes: int, sites: Iterable[int] | None = None) -> list[SiteRows]:
    """Rows by class of the server (first) and of each site, for the report."""
    numbers = [ON_SERVER, *(range(table.sites) if sites is None else sites)]
    counts = np.zeros((table.sites + 1, len(PARTS), classes), np.intp)
    np.add.at(counts, (table.site - ON_SERVER, table.part, labels), 1)
    rows = [[tuple(int(n) for n in part) for part in counts[number - ON_SERVER]] for number in numbers]
    names = [SERVER if number == ON_SERVER else site_name(number) for number in numbers]
    return [SiteRows(name, *parts) for name, parts in zip(names, rows, strict=True)]


def _hold_out(labels: Labels, share: float, random: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Mask (n,) of the rows to hold out: the share of every class, rounded by largest remainder, never a whole class.

    scikit-learn's stratified splits refuse classes of one row, which sites of few rows have.
    """
    held = np.zeros(len(labels), bool)
    if share == 0 or not len(labels):
        return held
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    most = counts - 1
    wanted = min(int(share * len(labels) + 0.5), int(most.sum()))
    quota = share * counts
    taken = np.minimum(np.floor(quota).astype(int), most)
    for group in np.argsort(-(quota - np.floor(quota)), kind="stable").tolist() * 2:
        if taken.sum() < wanted and taken[group] < most[group]:
            taken[group] += 1
    for group, count in enumerate(taken):
        rows = np.flatnonzero(codes == group)
        held[random.permutation(rows)[:count]] = True
    return held
