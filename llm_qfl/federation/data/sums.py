"""Federated sums: what a site tells of its training rows so that the server can fit the feature map.

A site sends counts, means and scatter (second moments about its means): the same information as sums and sums of
squares, without their loss of digits. Adding sites up (`combine`) is the update of Chan, Golub and LeVeque (1979) and
gives what pooled rows would.

Nobody may subtract his way to a row: a site with fewer than `min_rows` rows abstains, and where sums go by class
(`discriminant`), a class with fewer rows at a site is left out of *every* sum of that site, the scatter included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llm_qfl.federation.data.numerics import one_thread
from llm_qfl.federation.errors import DataError, RecordError
from llm_qfl.federation.types import Array, Labels

REDUCTIONS = ("discriminant", "pca", "none")
POOLED = ("all",)  # the one group of sums that do not go by class
_FIELDS = ("counts", "means", "scatter")


@dataclass(frozen=True, eq=False)
class FeatureSums:
    """Sums of one site, or of many after `combine`.

    Attributes:
        groups: names of the G classes, or `POOLED`.
        counts: (G,) rows that count.
        means: (G, D) mean row of each group; zeros where a group has no rows.
        scatter: sum over rows of the outer product of row minus its group's mean: the upper triangle row by row
            (D (D+1) / 2,), as it travels, or the diagonal (D,) where no more is needed (`none`).
    """

    groups: tuple[str, ...]
    counts: Array
    means: Array
    scatter: Array

    @property
    def rows(self) -> int:
        """Rows that count."""
        return int(self.counts.sum())

    def scatter_matrix(self) -> Array:
        """The scatter as a symmetric matrix (D, D); of a diagonal, diagonal."""
        dimension = self.means.shape[1]
        if len(self.scatter) == dimension:
            return np.diag(self.scatter)
        full = np.zeros((dimension, dimension))
        full[_triangle(dimension)] = self.scatter
        return full + np.triu(full, 1).T

    def to_arrays(self) -> dict[str, Array]:
        """For the wire."""
        return {"counts": self.counts, "means": self.means, "scatter": self.scatter}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], *, classes: Sequence[str], reduction: str) -> FeatureSums:
        """Read what `to_arrays` wrote, strictly.

        Args:
            arrays: counts, means and scatter.
            classes: the site's class names; they count where the sums go by class.
            reduction: the run's.

        Raises:
            RecordError: names, shapes or values that such sums cannot have.
        """
        if sorted(arrays) != sorted(_FIELDS):
            raise RecordError(f"sums: expected {', '.join(_FIELDS)}, got {', '.join(sorted(arrays))}")
        counts, means, scatter = (np.asarray(arrays[name], np.float64) for name in _FIELDS)
        groups = _groups(classes, reduction)
        dimension = means.shape[1] if means.ndim == 2 else 0
        packed = dimension if reduction == "none" else dimension * (dimension + 1) // 2
        if counts.shape != (len(groups),) or means.shape != (len(groups), dimension) or scatter.shape != (packed,):
            raise RecordError(
                f"sums: shapes {counts.shape}, {means.shape}, {scatter.shape} do not go together for "
                f"{len(groups)} groups and data.reduction={reduction}"
            )
        if not all(np.isfinite(array).all() for array in (counts, means, scatter)):
            raise RecordError("sums: values that are not finite")
        if (counts < 0).any() or (counts != np.round(counts)).any() or counts.sum() < 1:
            raise RecordError("sums: counts expected whole numbers of rows, at least one row")
        diagonal = scatter if reduction == "none" else scatter[_diagonal(dimension)]
        if (diagonal < 0).any():
            raise RecordError("sums: negative second moments")
        return cls(groups, counts, means, scatter)


@lru_cache(maxsize=4)
def _triangle(dimension: int) -> tuple[Labels, Labels]:
    rows, columns = np.triu_indices(dimension)
    return rows, columns


def _diagonal(dimension: int) -> Labels:
    """Where the diagonal lies in the packed triangle."""
    index = np.arange(dimension)
    return index * dimension - index * (index - 1) // 2


def _products(rows: Array, diagonal: bool) -> Array:
    """Sum of the rows' outer products, packed."""
    if diagonal:
        return np.asarray((rows**2).sum(axis=0))
    return np.asarray((rows.T @ rows)[_triangle(rows.shape[1])])


def _groups(classes: Sequence[str], reduction: str) -> tuple[str, ...]:
    return tuple(classes) if reduction == "discriminant" else POOLED


def local_sums(x: Array, y: Labels, *, classes: Sequence[str], reduction: str, min_rows: int) -> FeatureSums | None:
    """One site's sums over its training rows; None where the site abstains.

    Args:
        x: (n, D) training rows.
        y: (n,) label codes in the order of `classes`.
        classes: class names.
        reduction: `discriminant` (by class), `pca` (pooled) or `none` (pooled, no products of features).
        min_rows: fewest rows of a group.
    """
    if reduction not in REDUCTIONS:
        raise DataError(f"data.reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    by_class = reduction == "discriminant"
    groups = _groups(classes, reduction)
    codes = y if by_class else np.zeros(len(x), np.intp)
    counts = np.bincount(codes, minlength=len(groups)).astype(np.float64)
    counts[counts < min_rows] = 0
    if counts.sum() < max(min_rows, 1):
        return None
    dimension, diagonal = x.shape[1], reduction == "none"
    means = np.zeros((len(groups), dimension))
    scatter = np.zeros(dimension if diagonal else dimension * (dimension + 1) // 2)
    with one_thread():
        for group in np.flatnonzero(counts):
            rows = x[codes == group]
            mean = rows.mean(axis=0)
            mean += (rows - mean).mean(axis=0)  # what rounding the first mean left
            means[group] = mean
            scatter += _products(rows - mean, diagonal)
    return FeatureSums(groups, counts, means, scatter)


def combine(parts: Sequence[tuple[str, FeatureSums]], classes: Sequence[str] | None = None) -> FeatureSums:
    """Add up sites, in the order of their names.

    Args:
        parts: (site, its sums).
        classes: order of the classes in the result; by default as the sites, by name, bring them.

    Raises:
        DataError: no site, or sites whose sums do not go together.
    """
    if not parts:
        raise DataError("feature map: no site sent sums; lower data.min-rows or bring more rows")
    ordered = [sums for _, sums in sorted(parts, key=lambda part: part[0])]
    shapes = {(sums.scatter.shape, sums.groups == POOLED) for sums in ordered}
    if len(shapes) > 1:
        raise DataError(
            "feature map: the sites' sums differ in the number of features or in kind; "
            "every site needs the same columns, data.encoding and data.reduction"
        )
    named = list(dict.fromkeys(name for sums in ordered for name in sums.groups))
    groups = tuple(named) if classes is None or ordered[0].groups == POOLED else tuple(classes)
    if unknown := set(named) - set(groups):
        raise DataError(f"feature map: sums of unknown classes {sorted(unknown)}")
    with one_thread():
        return _add(ordered, groups)


def _add(parts: Sequence[FeatureSums], groups: tuple[str, ...]) -> FeatureSums:
    dimension = parts[0].means.shape[1]
    counts, means = np.zeros(len(groups)), np.zeros((len(groups), dimension))
    scatter = np.zeros_like(parts[0].scatter)
    for part in parts:
        scatter += part.scatter
    for number, group in enumerate(groups):
        found = [(part.counts[i], part.means[i]) for part in parts for i, g in enumerate(part.groups) if g == group]
        there = [(count, mean) for count, mean in found if count]
        if not there:
            continue
        sizes, centres = np.array([count for count, _ in there]), np.array([mean for _, mean in there])
        counts[number] = sizes.sum()
        means[number] = centres[0] + sizes @ (centres - centres[0]) / sizes.sum()  # differences keep the digits
        apart = (centres - means[number]) * np.sqrt(sizes)[:, None]
        scatter += _products(apart, diagonal=len(scatter) == dimension)
    return FeatureSums(groups, counts, means, scatter)
