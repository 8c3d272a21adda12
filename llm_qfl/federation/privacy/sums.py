"""Private sums for the feature map: counts, means and variances by class, of rows within public ranges.

What a row adds is one vector no longer than 1, so that Gaussian noise of a known size covers all of it at once: its
class, its numbers (scaled by the public ranges to [-1, 1] and by 1/sqrt(D)), and their squares. Products of different
numbers are not sent: noise would drown them. Everything after the noise (means, variances, rounding) costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from llm_qfl.federation.data.sums import POOLED, FeatureSums
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.types import Array, Labels

COUNTS, MEANS, SQUARES = (math.sqrt(share) for share in (0.1, 0.6, 0.3))
"""Lengths of the parts of a row's vector, their squares one in all: variances and counts need fewer digits."""
LEAST_VARIANCE = 5e-3
"""Of a number scaled to [-1, 1]: noise must not make a number look constant."""

Bounds = Sequence[tuple[float, float]]


def scaled(x: Array, bounds: Bounds) -> Array:
    """Numbers (N, D) scaled to [-1, 1] by their public ranges; what lies beyond is cut off.

    Raises:
        DataError: not as many ranges as numbers.
    """
    middle, half = _centre(bounds, x.shape[1])
    return np.clip((x - middle) / half, -1.0, 1.0)


def contributions(x: Array, y: Labels, bounds: Bounds, classes: int) -> Array:
    """What each row adds (N, C + C D + D), Euclidean length at most 1."""
    rows, dimension = x.shape
    z = scaled(x, bounds)
    one_hot = np.eye(classes)[y]
    means = (one_hot[:, :, None] * z[:, None, :]).reshape(rows, classes * dimension) / math.sqrt(dimension)
    return np.concatenate([COUNTS * one_hot, MEANS * means, SQUARES * z * z / math.sqrt(dimension)], axis=1)


def private_sums(
    x: Array,
    y: Labels,
    *,
    classes: Sequence[str],
    reduction: str,
    min_rows: int,
    bounds: Bounds,
    noise: Callable[[int], Array],
    whole: bool = False,
) -> tuple[FeatureSums | None, Labels]:
    """One site's sums with noise on everything that was counted in rows.

    Args:
        x: (n, D) training rows.
        y: (n,) label codes in the order of `classes`.
        classes: class names.
        reduction: `discriminant` (means by class) or `none` (pooled).
        min_rows: fewest rows of a site; classes that seem to have fewer are left out.
        bounds: public range of each number.
        noise: size -> noise (size,) for a sum of which a row (or the site) changes at most a length of 1.
        whole: hide the site, not a row: the mean of its rows' vectors gets the noise.

    Returns:
        The sums, None where the site abstains, and its rows by class as far as they may be told.
    """
    if len(x) < max(min_rows, 1):
        return None, np.zeros(len(classes), np.intp)
    total = contributions(x, y, bounds, len(classes)).sum(axis=0)
    total = total + noise(len(total)) * (len(x) if whole else 1)
    return from_moments(total, len(x), classes=classes, reduction=reduction, min_rows=min_rows, bounds=bounds)


def from_moments(
    total: Array, rows: int, *, classes: Sequence[str], reduction: str, min_rows: int, bounds: Bounds
) -> tuple[FeatureSums | None, Labels]:
    """Sums that could be a site's, from the noisy total of what its rows add; and rows by class.

    Args:
        total: (C + C D + D).
        rows: n, which is public.
        classes: class names.
        reduction: `discriminant` or `none`.
        min_rows: classes that seem to have fewer rows are left out.
        bounds: public range of each number.
    """
    number = len(classes)
    dimension = (len(total) - number) // (number + 1)
    counts = np.clip(np.round(total[:number] / COUNTS), 0, rows)
    by_class = counts.astype(np.intp)
    sums = total[number : number + number * dimension].reshape(number, dimension) * (math.sqrt(dimension) / MEANS)
    squares = total[number + number * dimension :] * (math.sqrt(dimension) / SQUARES)
    if reduction != "discriminant":
        counts, sums = np.array([float(rows)]), sums.sum(axis=0, keepdims=True)
    else:
        counts = np.where(counts < min_rows, 0.0, counts)
        squares = squares * (counts.sum() / rows)
    if counts.sum() < max(min_rows, 1):
        return None, by_class
    means = np.clip(sums / np.maximum(counts, 1.0)[:, None], -1.0, 1.0) * (counts > 0)[:, None]
    scatter = np.clip(squares, 0, counts.sum()) - counts @ (means * means)
    scatter = np.maximum(scatter, LEAST_VARIANCE * counts.sum())
    middle, half = _centre(bounds, dimension)
    places = np.where((counts > 0)[:, None], middle + half * means, 0.0)
    groups = tuple(classes) if reduction == "discriminant" else POOLED
    return FeatureSums(groups, counts, places, _packed(scatter * half**2, reduction)), by_class


def to_moments(sums: FeatureSums, by_class: Labels, bounds: Bounds) -> Array:
    """The total of what rows add, from sums without noise: the inverse of `from_moments` (by class alone)."""
    middle, half = _centre(bounds, sums.means.shape[1])
    means = np.where(sums.counts[:, None] > 0, (sums.means - middle) / half, 0.0)
    squares = np.diagonal(sums.scatter_matrix()) / half**2 + sums.counts @ (means * means)
    root = math.sqrt(sums.means.shape[1])
    parts = [COUNTS * by_class, MEANS / root * (sums.counts[:, None] * means).ravel(), SQUARES / root * squares]
    return np.concatenate(parts)


def _centre(bounds: Bounds, dimension: int) -> tuple[Array, Array]:
    """Middle and half width (D,) of the ranges."""
    if len(bounds) not in (1, dimension):
        raise DataError(f"privacy.ranges: expected one low:high pair, or {dimension}, got {len(bounds)}")
    pairs = np.broadcast_to(np.array(bounds, np.float64), (dimension, 2))
    return pairs.mean(axis=1), (pairs[:, 1] - pairs[:, 0]) / 2


def _packed(diagonal: Array, reduction: str) -> Array:
    """A diagonal as sums of that reduction hold it."""
    if reduction != "discriminant":
        return diagonal
    dimension = len(diagonal)
    return np.asarray(np.diag(diagonal)[np.triu_indices(dimension)])
