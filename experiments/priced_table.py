"""The priced comparison as Markdown, from kept lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.prices import Prices, cost_to_target
from experiments.priced_arms import FIXED, PRICED, RULE, STATIC
from experiments.priced_cells import PRICES, ROUNDS
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.errors import FederationError
from simulation.policy_judging import interval
from simulation.policy_states import prices_of

HELD = 0.98
MOST_FALLBACKS = AgentConfig().max_fallback
Row = Mapping[str, Any]
ONE, EACH, QFL = "static-one", "static-each", "qfl"


@dataclass(frozen=True)
class Figure:
    """One run: its priced cost as a share of the full budget, whether it got there, its test accuracy there."""

    cost: float
    reached: bool
    test: float


@dataclass(eq=False)
class Comparison:
    """Figures of one cell at one price list, by arm and seed.

    Attributes:
        rows: the cell's lines.
        prices: name of the price list.
        static_one: the arm that `static-one` is.
    """

    rows: Sequence[Row]
    prices: str
    static_one: str

    @cached_property
    def by(self) -> dict[str, dict[int, Row]]:
        """Arm -> seed -> line, at these prices."""
        found: dict[str, dict[int, Row]] = {}
        for row in self.rows:
            if row["prices"] in ("any", self.prices):
                found.setdefault(row["arm"], {})[row["seed"]] = row
        return found

    @cached_property
    def qfl(self) -> str:
        """The fixed budget with the best mean final validation accuracy; of equals the smallest."""
        there = [arm for arm in FIXED if arm in self.by]
        if not there:
            raise FederationError("priced: no line of mode qfl in this cell; let the run finish its static arms first")
        seeds = common([self.by[arm] for arm in there])
        return max(there, key=lambda arm: (self._final(arm, seeds), -STATIC[arm].steps))

    def target(self, seed: int) -> float:
        """98% of the tuned fixed plan's mean final validation accuracy on the seed's deal, whose rows are its own."""
        fixed = self.by[self.qfl]
        return HELD * self._final(self.qfl, {one for one in fixed if fixed[one]["split"] == fixed[seed]["split"]})

    def _final(self, arm: str, seeds: Set[int]) -> float:
        rows = [row for seed, row in self.by[arm].items() if seed in seeds]
        return by_deal([row["accuracies"][-1] for row in rows], [row["split"] for row in rows])

    def cheapest(self, arms: Mapping[str, Mapping[int, Figure]]) -> str:
        """The arm with the least mean log cost in hindsight, over the seeds that all have; deals weigh alike."""
        seeds = sorted(common(list(arms.values())))
        deals = [self.by[self.qfl][seed]["split"] for seed in seeds]
        return min(arms, key=lambda arm: by_deal([log(arms[arm][seed].cost) for seed in seeds], deals))

    def price(self, row: Row) -> Prices:
        """Prices of a line's federation."""
        return prices_of(PRICES[self.prices], *row["unit"])

    def figure(self, row: Row) -> Figure:
        """A line's figure."""
        prices, fixed = self.price(row), self.by[self.qfl][row["seed"]]
        full = sum(_costs(fixed, prices))
        costs = _costs(row, prices)
        reached = cost_to_target(row["accuracies"], costs, self.target(row["seed"]))
        there = reached.server_round is not None
        test = row["tests"][(reached.server_round or len(costs)) - 1]
        return Figure((reached.cost if there else max(full, sum(costs))) / full, there, test)

    @cached_property
    def figures(self) -> dict[str, dict[int, Figure]]:
        """Arm -> seed -> figure, `qfl`, `static-one` and `static-each` among the arms."""
        fixed = set(self.by[self.qfl])
        found = {
            arm: {seed: self.figure(row) for seed, row in rows.items() if seed in fixed}
            for arm, rows in self.by.items()
        }
        statics = {arm: figures for arm, figures in found.items() if arm in STATIC}
        found |= {QFL: found[self.qfl], EACH: found[self.cheapest(statics)]}
        if self.static_one in found:
            found[ONE] = found[self.static_one]
        return found

    def note(self, arm: str) -> str:
        """Which setting an arm is, or that a rule never fired."""
        if arm in (QFL, ONE):
            return f" ({self.qfl if arm == QFL else self.static_one})"
        if arm == EACH:
            names = [name for name in STATIC if name in self.figures and self.figures[name] is self.figures[EACH]]
            return f" ({', '.join(names)})"
        rows = list(self.by.get(arm, {}).values())
        return " (inert)" if arm in RULE and rows and not any(row.get("grew") for row in rows) else ""


def common(arms: Sequence[Mapping[int, Any]]) -> set[int]:
    """Seeds that all arms have, by which arms are chosen: over others one would win that lacks a hard deal.

    Raises:
        FederationError: there are none.
    """
    seeds = set.intersection(*(set(arm) for arm in arms))
    if not seeds:
        raise FederationError("priced: arms of this cell have no seed in common; let the run finish one")
    return seeds


def by_deal(values: Sequence[float], deals: Sequence[int]) -> float:
    """Mean over the deals' own means, as in the ratios: a deal with more seeds weighs no more."""
    means = [np.mean([value for value, of in zip(values, deals, strict=True) if of == deal]) for deal in set(deals)]
    return float(np.mean(means))


def log(cost: float) -> float:
    """Logarithm; nothing costs nothing."""
    return math.log(max(cost, 1e-9))


def mean_log(values: Sequence[float]) -> float:
    """Mean logarithm."""
    return float(np.mean([log(value) for value in values]))


@dataclass(frozen=True)
class Paired:
    """Ratio of two arms' costs over the same federations (deals of a cell), each of which counts once.

    Attributes:
        ratio: geometric mean.
        low, high: 95% interval (Student's t on the logarithms); deals of a cell are averaged before, where there are
            three cells or more.
        p: Wilcoxon's signed-rank test over the same values, two-sided.
        accuracy: mean difference of test accuracy.
        accuracy_low, accuracy_high: its 95% interval, as above.
        pairs: how many federations.
    """

    ratio: float
    low: float
    high: float
    p: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    pairs: int


Federation = tuple[str, int]  # cell without its reduction, split
Pairs = Mapping[Federation, Sequence[tuple[Figure, Figure]]]


def paired(pairs: Pairs) -> Paired:
    """Compare two arms; price lists, reductions and seeds of one deal are averaged first, since they are no repetition.

    Args:
        pairs: (mine, other) of each federation.
    """
    from scipy.stats import wilcoxon

    logs = {key: float(np.mean([math.log(a.cost / b.cost) for a, b in both])) for key, both in pairs.items()}
    tests = {key: float(np.mean([a.test - b.test for a, b in both])) for key, both in pairs.items()}
    units = _units(logs)
    middle, low, high = interval(units)
    p = float(wilcoxon(units).pvalue) if len(units) > 1 and np.any(units != 0) else 1.0
    return Paired(math.exp(middle), math.exp(low), math.exp(high), p, *interval(_units(tests)), len(logs))


def _units(values: Mapping[Federation, float]) -> NDArray[np.float64]:
    """What is independent: the means of the cells, or the federations where cells are fewer than three."""
    cells: dict[str, list[float]] = {}
    for (cell, _), value in values.items():
        cells.setdefault(cell, []).append(value)
    return np.array([np.mean(one) for one in cells.values()] if len(cells) >= 3 else list(values.values()))


def comparisons(rows: Sequence[Row], static_one: str) -> dict[tuple[str, str], Comparison]:
    """Every cell at every price list."""
    cells = sorted({row["cell"] for row in rows})
    return {
        (cell, prices): Comparison([row for row in rows if row["cell"] == cell], prices, static_one)
        for cell in cells
        for prices in PRICES
    }


def table_lines(rows: Sequence[Row], static_one: str) -> list[str]:
    """Markdown: what everything comes to first, then cell by cell."""
    found = comparisons(rows, static_one)
    lines = summary_lines(found)
    for (cell, prices), one in found.items():
        seeds = len(one.by[one.qfl])
        splits = len({row["split"] for row in one.by[one.qfl].values()})
        kind = "/".join(sorted({row["teacher"] for row in one.rows}))
        about = f"seeds: {seeds}, on {splits} deals; {ROUNDS} rounds; language model: {kind}"
        lines += ["", f"#### {cell}, {prices} ({about})", ""]
        lines += [
            "| arm | priced cost to the target, full budget of qfl = 1 | never there | test accuracy where it ends |",
            "|---|---|---|---|",
        ]
        for arm in shown(one):
            figures = list(one.figures[arm].values())
            cost = math.exp(mean_log([figure.cost for figure in figures]))
            never = 1 - float(np.mean([figure.reached for figure in figures]))
            test = [figure.test for figure in figures]
            spread = f" ± {np.std(test, ddof=1):.3f}" if len(test) > 1 else ""
            lines.append(f"| {arm}{one.note(arm)} | {cost:.3f} | {never:.0%} | {np.mean(test):.3f}{spread} |")
    return lines


def shown(one: Comparison) -> list[str]:
    """Arms in the table's order."""
    order = [QFL, *RULE, ONE, EACH, *PRICED]
    return [arm for arm in order if arm in one.figures]


def summary_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """The policy beside every other arm: over all price lists, at each, and without the plays that are the rule's."""
    lines = [
        "| policy / other arm | prices | ratio of costs, 95% | Wilcoxon p | test accuracy, 95% | federations |",
        "|---|---|---|---|---|---|",
    ]
    others = [QFL, ONE, EACH, "best rule", *[arm for arm in PRICED if arm != "policy"]]
    for other in others:
        for prices in ("all", *PRICES):
            if pairs := pairs_of(found, other, prices):
                lines.append(f"| {other} | {prices} | {_cells(paired(pairs))} |")
    for other in others[:4]:
        if pairs := pairs_of(found, other, "all", decided=True):
            lines.append(f"| {other}, but for plays that count as the rule's | all | {_cells(paired(pairs))} |")
    return lines + verdict_lines(found) + information_lines(found)


def _cells(one: Paired) -> str:
    return (
        f"{one.ratio:.2f} ({one.low:.2f} to {one.high:.2f}) | {one.p:.2g} | "
        f"{one.accuracy:+.3f} ({one.accuracy_low:+.3f} to {one.accuracy_high:+.3f}) | {one.pairs}"
    )


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
        name = best_rule(one) if other == "best rule" else other
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


def verdict_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """Is the policy one, by the issue's own measure: do states that are not the run's own make it worse?"""
    from scipy.stats import ttest_1samp

    pairs = pairs_of(found, "policy, shuffled state", "all")
    if len(pairs) < 2:
        return []
    logs = _units({key: float(np.mean([math.log(b.cost / a.cost) for a, b in both])) for key, both in pairs.items()})
    p = float(ttest_1samp(logs, 0.0).pvalue)
    worse = float(np.mean(logs)) > 0
    word = "depends on its state" if worse and p < 0.05 else "**static**: states of other federations do as well"
    ratio = math.exp(float(np.mean(logs)))
    return ["", f"With shuffled states it costs {ratio:.2f} times as much (p {p:.2g}, two-sided): {word}."]


def best_rule(one: Comparison) -> str | None:
    """The rule with the least mean cost here, in hindsight."""
    there = {arm: one.figures[arm] for arm in RULE if one.figures.get(arm)}
    return one.cheapest(there) if there else None


def information_lines(found: Mapping[tuple[str, str], Comparison]) -> list[str]:
    """I(state; option) of the policy at each price list, its fallbacks, and the share of runs that are the rule's."""
    from agent.choice import mutual_information

    lines: list[str] = []
    for prices in PRICES:
        mine = [one for (_, at), one in found.items() if at == prices]
        rows = [row for one in mine for row in one.by.get("policy", {}).values()]
        if not rows:
            continue
        asked: dict[str, list[Any]] = {}
        for row in rows:
            for name, values in row.get("probabilities", {}).items():
                asked.setdefault(name, []).extend(np.array(value) for value in values)
        told = ", ".join(f"{name} {mutual_information(values):.3f}" for name, values in asked.items() if values)
        rates = [row.get("fallback_rate", 0.0) for row in rows]
        lines += [
            "",
            f"{prices}: I(state; option), nats: {told or 'never asked'}. Decisions that the rule took over: "
            f"{np.mean(rates):.0%}; runs with more than a fifth of them, which count as the rule's: "
            f"{np.mean([rate > MOST_FALLBACKS for rate in rates]):.0%} of {len(rates)}.",
        ]
    return lines


def _costs(row: Row, prices: Prices) -> list[float]:
    return [prices.cost(c, 1, b) for c, b in zip(row["circuits"], row["bytes"], strict=True)]
