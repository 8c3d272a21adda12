"""Robust aggregation as pure functions: n updates in, one out, whatever a few of them hold.

Updates are vectors (n, P): what a site would change of the state that it was given. The caller gives them in the order
of the sites' names, so that the same replies give the same bits. Every site counts alike: a number of rows is a claim.

Coordinate-wise median and trimmed mean: Yin et al., ICML 2018. Krum and multi-Krum: Blanchard et al., NeurIPS 2017.
Scaling long updates down: Sun et al. 2019, "Can you really backdoor federated learning?".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import Array, Labels, UpdateStats

KRUM_LEAST = 3  # replies: a neighbour besides the update itself and one that may be bad


def assumed_bad(count: int, share: float) -> int:
    """How many of `count` updates are taken to be bad: the share, rounded up, but always fewer than half."""
    return max(0, min(math.ceil(share * count - 1e-9), (count - 1) // 2))


def least_replies(rule: str) -> int:
    """Fewest replies that a rule can work with; below, the round keeps its model."""
    return KRUM_LEAST if rule in ("krum", "multi-krum") else 1


def scale_down(update: Array, bound: float) -> tuple[Array, float]:
    """An update no longer than `bound` (Euclidean), and the factor that made it so; a bound of 0 changes nothing."""
    length = float(np.linalg.norm(update))
    if bound <= 0 or length <= bound:
        return update, 1.0
    factor = bound / length
    return update * factor, factor


def coordinate_median(updates: Array) -> Array:
    """The median of each coordinate (P,)."""
    return np.asarray(np.median(updates, axis=0))


def trimmed_mean(updates: Array, cut: int) -> Array:
    """The mean of each coordinate (P,) without its `cut` largest and `cut` smallest values."""
    count = len(updates)
    if not 0 <= 2 * cut < count:
        raise FederationError(f"trimmed mean: {cut} at each end of {count} updates leaves none; lower server.bad-share")
    return np.asarray(np.sort(updates, axis=0)[cut : count - cut].mean(axis=0))


def krum_scores(updates: Array, bad: int) -> Array:
    """Sum of each update's squared distances to its n - bad - 2 nearest others (n,); small is trustworthy."""
    count = len(updates)
    nearest = max(1, count - bad - 2)
    squared = np.empty((count, count))
    for number, update in enumerate(updates):  # an adapter has 10^5 numbers: no (n, n, P) at once
        apart = updates - update
        squared[number] = np.einsum("jp,jp->j", apart, apart)
    np.fill_diagonal(squared, np.inf)
    return np.asarray(np.sort(squared, axis=1)[:, :nearest].sum(axis=1))


def krum_choice(updates: Array, bad: int, keep: int) -> Labels:
    """Indices (keep,) of the updates with the smallest Krum scores, ascending; ties go to the earlier one.

    Raises:
        FederationError: fewer than three updates.
    """
    if len(updates) < KRUM_LEAST:
        raise FederationError(f"krum: expected at least {KRUM_LEAST} updates, got {len(updates)}; take median")
    # With n <= 2 bad + 2 nothing is promised; fewer are then taken to be bad, as many as the proof allows.
    bad = min(bad, (len(updates) - KRUM_LEAST) // 2)
    return np.asarray(np.sort(np.argsort(krum_scores(updates, bad), kind="stable")[:keep]))


def robust_mean(updates: Array, rule: str, share: float) -> tuple[Array, Labels]:
    """One update from many, by a rule other than the weighted mean.

    Args:
        updates: (n, P), n > 0, finite.
        rule: `trimmed-mean`, `median`, `krum` or `multi-krum`.
        share: of them that may be bad.

    Returns:
        The update (P,), and the indices of those that entered it.

    Raises:
        FederationError: no update, an unknown rule, or fewer updates than it needs.
    """
    if not len(updates):
        raise FederationError("robust aggregation: expected at least one update, got none")
    bad, everyone = assumed_bad(len(updates), share), np.arange(len(updates))
    if rule == "median":
        return coordinate_median(updates), everyone
    if rule == "trimmed-mean":
        return trimmed_mean(updates, bad), everyone
    if rule == "krum":
        chosen = krum_choice(updates, bad, 1)
        return updates[chosen[0]], chosen
    if rule == "multi-krum":
        chosen = krum_choice(updates, bad, len(updates) - bad)
        return np.asarray(updates[chosen].mean(axis=0)), chosen
    raise FederationError(f"robust aggregation: unknown rule {rule!r}")


def cosine(first: Array, second: Array) -> float | None:
    """Cosine of the angle between two vectors; None where one is zero."""
    lengths = float(np.linalg.norm(first)) * float(np.linalg.norm(second))
    return float(first @ second) / lengths if lengths > 0 else None


def update_stats(
    updates: Sequence[Array], factors: Sequence[float], aggregated: Array, chosen: Labels
) -> tuple[UpdateStats, ...]:
    """What each update was like beside the aggregated one.

    Args:
        updates: of theta, as they came.
        factors: by which each was scaled down.
        aggregated: the change of the global theta.
        chosen: indices of the updates that entered it.
    """
    inside = set(chosen.tolist())
    return tuple(
        UpdateStats(float(np.linalg.norm(update)), cosine(update, aggregated), factor, number in inside)
        for number, (update, factor) in enumerate(zip(updates, factors, strict=True))
    )
