"""Two arms of the priced comparison over the same federations: ratio of costs, its interval, its p."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from experiments.priced_figures import BEST, MOST_FALLBACKS, Comparison, Figure, best_rule
from simulation.policy_judging import interval

Federation = tuple[str, int]  # cell without its reduction, split
Pairs = Mapping[Federation, Sequence[tuple[Figure, Figure]]]


@dataclass(frozen=True)
class Paired:
    """Ratio of two arms' costs over the same federations (deals of a cell).

    Attributes:
        ratio: geometric mean.
        low, high: 95% interval (Student's t on the logarithms); deals of a cell are averaged before, where there are
            three cells or more.
        p: Wilcoxon's signed-rank test over the same values, two-sided.
        accuracy: mean difference of test accuracy.
        accuracy_low, accuracy_high: its 95% interval, as above.
        values: how many interval and p are over: cells, or deals of a cell where there are fewer than three.
    """

    ratio: float
    low: float
    high: float
    p: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    values: int


def paired(pairs: Pairs) -> Paired:
    """Compare two arms; price lists, reductions and seeds of one deal are averaged first, since they are no repetition.

    Args:
        pairs: (mine, other) of each federation.
    """
    logs = {key: float(np.mean([math.log(a.cost / b.cost) for a, b in both])) for key, both in pairs.items()}
    tests = {key: float(np.mean([a.test - b.test for a, b in both])) for key, both in pairs.items()}
    units = _units(logs)
    middle, low, high = interval(units)
    p = float(wilcoxon(units).pvalue) if len(units) > 1 and np.any(units != 0) else 1.0
    return Paired(math.exp(middle), math.exp(low), math.exp(high), p, *interval(_units(tests)), len(units))


def ratio(one: Paired) -> str:
    """In words, with its interval where there is one."""
    spread = f" ({one.low:.2f} to {one.high:.2f})" if one.values > 1 else ""
    return f"{one.ratio:.2f}{spread}"


def _units(values: Mapping[Federation, float]) -> NDArray[np.float64]:
    """What is independent: the means of the cells, or the federations where cells are fewer than three."""
    cells: dict[str, list[float]] = {}
    for (cell, _), value in values.items():
        cells.setdefault(cell, []).append(value)
    return np.array([np.mean(one) for one in cells.values()] if len(cells) >= 3 else list(values.values()))


def of_deal(pairs: Pairs, split: int) -> Pairs:
    """Those of one deal of every cell."""
    return {key: both for key, both in pairs.items() if key[1] == split}


def pairs_of(found: Mapping[tuple[str, str], Comparison], other: str, prices: str, *, decided: bool = False) -> Pairs:
    """The policy's figures with another arm's, by deal of a cell; tweets in two reductions are one.

    Args:
        found: every cell at every price list.
        other: the other arm.
        prices: a price list, or `all`.
        decided: leave out the policy's plays in which the rule took so many decisions that they count as its own.
    """
    pairs: dict[Federation, list[tuple[Figure, Figure]]] = {}
    for (cell, at), one in found.items():
        name = best_rule(one) if other == BEST else other
        if prices not in ("all", at) or name not in one.figures or "policy" not in one.figures:
            continue
        data, alpha = cell.rsplit(" ", 1)
        mine, theirs = one.figures["policy"], one.figures[name]
        for seed in sorted(set(mine) & set(theirs)):
            if decided and one.by["policy"][seed].get("fallback_rate", 0.0) > MOST_FALLBACKS:
                continue
            split = one.by["policy"][seed]["split"]
            pairs.setdefault((f"{data.split('-')[0]} {alpha}", split), []).append((mine[seed], theirs[seed]))
    return pairs
