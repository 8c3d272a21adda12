"""Updates of a round -> the next global state, by the rule that `server.aggregation` names; what each site's was like.

The weighted mean is `aggregate`'s, to the bit, where nothing is scaled. Theta and each baseline are models of their
own: each is aggregated for itself. A late report enters with its damped update, as in `aggregate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_qfl.federation.aggregation import Late, weighted_mean
from llm_qfl.federation.config_robust import RobustKeys
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.robust import robust_mean, scale_down, update_stats
from llm_qfl.federation.types import Array, Arrays, ClientReport, GlobalState, Labels, UpdateStats

THETA = ""  # the name of theta among the models; baselines have theirs

Vectors = dict[str, Array]


@dataclass(frozen=True, eq=False)
class Combined:
    """What a round's replies make.

    Attributes:
        state: the next global state.
        stats: site -> what its update of theta was like.
    """

    state: GlobalState
    stats: Mapping[str, UpdateStats]


def combine(
    state: GlobalState,
    reports: Sequence[ClientReport],
    keys: RobustKeys,
    *,
    weighting: str = "examples",
    late: Sequence[Late] = (),
) -> Combined:
    """The next global state from the accepted reports.

    Args:
        state: the state that was sent in this round.
        reports: accepted reports of this round, in any order.
        keys: rule, share of bad ones, norm bound, row cap.
        weighting: of the mean: `examples` or `uniform`.
        late: accepted reports of earlier rounds, in any order.

    Raises:
        FederationError: no report, or fewer than the rule needs.
    """
    entries = [(one.site, one.server_round, one.num_examples, flatten(one.theta, one.baselines)) for one in reports]
    for one in late:
        theta, baselines = one.rebased(state)
        report = one.report
        entries.append((report.site, report.server_round, report.num_examples, flatten(theta, baselines)))
    if not entries:
        raise FederationError("aggregation: expected at least one accepted report, got none")
    entries.sort(key=lambda entry: entry[:2])
    weights = [weight_of(rows, keys, weighting) for _, _, rows, _ in entries]
    sent, new = flatten(state.theta, state.baselines), {}
    stats: dict[str, UpdateStats] = {}
    for name, start in sent.items():
        points, factors = _scaled([vectors[name] for *_, vectors in entries], start, keys.norm_bound)
        new[name], chosen = _aggregated(points, start, weights, keys)
        if name == THETA:
            updates = [vectors[THETA] - start for *_, vectors in entries]
            found = update_stats(updates, factors, new[name] - start, chosen)
            stats = dict(zip([site for site, *_ in entries], found, strict=True))
    return Combined(unflatten(new, state), stats)


def combine_updates(
    updates: Sequence[Array], weights: Sequence[float], keys: RobustKeys, bound: float
) -> tuple[Array, tuple[UpdateStats, ...]]:
    """One update from many, each scaled down to the bound first, and what they were like.

    Args:
        updates: (P,) each, in the order of the sites' names.
        weights: of the mean; the other rules count every site alike.
        keys: rule and share of bad ones.
        bound: longest update (Euclidean); 0 scales none.

    Raises:
        FederationError: no update, or fewer than the rule needs.
    """
    if not updates:
        raise FederationError("aggregation: expected at least one update, got none")
    scaled = [scale_down(update, bound) for update in updates]
    points = [update for update, _ in scaled]
    found, chosen = _aggregated(points, np.zeros_like(points[0]), weights, keys)
    return found, update_stats(updates, [factor for _, factor in scaled], found, chosen)


def flatten(theta: Array, baselines: Mapping[str, Arrays]) -> Vectors:
    """Theta and every baseline as one vector each, arrays in the order of their names."""
    vectors = {THETA: theta}
    for name, arrays in sorted(baselines.items()):
        vectors[name] = np.concatenate([arrays[key].ravel() for key in sorted(arrays)])
    return vectors


def unflatten(vectors: Mapping[str, Array], like: GlobalState) -> GlobalState:
    """The inverse of `flatten`, with a state's names and shapes."""
    baselines: dict[str, dict[str, Array]] = {}
    for name, arrays in like.baselines.items():
        rest = vectors[name]
        found: dict[str, Array] = {}
        for key in sorted(arrays):
            found[key], rest = rest[: arrays[key].size].reshape(arrays[key].shape), rest[arrays[key].size :]
        baselines[name] = {key: found[key] for key in arrays}
    return GlobalState(like.server_round, vectors[THETA], like.parameter_names, baselines)


def weight_of(rows: int, keys: RobustKeys, weighting: str) -> float:
    """A site's weight in the mean: its rows up to `server.row-cap`, or 1."""
    if weighting != "examples":
        return 1.0
    return float(min(rows, keys.row_cap) if keys.row_cap else rows)


def _scaled(points: Sequence[Array], start: Array, bound: float) -> tuple[list[Array], list[float]]:
    """Points whose updates are within the bound; one that is not scaled stays as it is, to the bit."""
    result, factors = [], []
    for point in points:
        update, factor = scale_down(point - start, bound)
        result.append(point if factor == 1 else start + update)
        factors.append(factor)
    return result, factors


def _aggregated(
    points: Sequence[Array], start: Array, weights: Sequence[float], keys: RobustKeys
) -> tuple[Array, Labels]:
    if keys.aggregation == "mean":
        return weighted_mean(points, weights), np.arange(len(points))
    update, chosen = robust_mean(np.array(points) - start, keys.aggregation, keys.bad_share)
    return start + update, chosen
