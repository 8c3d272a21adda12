"""What one run of the priced comparison comes to, and which arm of a cell is the best: from kept lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from agent.prices import Prices, cost_to_target
from experiments.priced_arms import FIXED, RULE, STATIC
from experiments.priced_cells import PRICES
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.errors import FederationError
from simulation.policy_states import prices_of

HELD = 0.98
MOST_FALLBACKS = AgentConfig().max_fallback
Row = Mapping[str, Any]
ONE, EACH, QFL = "static-one", "static-each", "qfl"
BEST = "best rule"


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
        """Which setting an arm is; of a rule in how many rounds it raised a budget, and in how many seeds never."""
        if arm in (QFL, ONE):
            return f" ({self.qfl if arm == QFL else self.static_one})"
        if arm == EACH:
            names = [name for name in STATIC if name in self.figures and self.figures[name] is self.figures[EACH]]
            return f" ({', '.join(names)})"
        grew = [row["grew"] for row in self.by.get(arm, {}).values()] if arm in RULE else []
        if not grew:
            return ""
        inert = sum(share == 0 for share in grew)
        return f" (raised in {np.mean(grew):.0%} of the rounds, inert in {inert} of {len(grew)} seeds)"


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


def comparisons(rows: Sequence[Row], static_one: str) -> dict[tuple[str, str], Comparison]:
    """Every cell at every price list."""
    cells = sorted({row["cell"] for row in rows})
    return {
        (cell, prices): Comparison([row for row in rows if row["cell"] == cell], prices, static_one)
        for cell in cells
        for prices in PRICES
    }


def best_rule(one: Comparison) -> str | None:
    """The rule with the least mean cost here, in hindsight."""
    there = {arm: one.figures[arm] for arm in RULE if one.figures.get(arm)}
    return one.cheapest(there) if there else None


def _costs(row: Row, prices: Prices) -> list[float]:
    return [prices.cost(c, 1, b) for c, b in zip(row["circuits"], row["bytes"], strict=True)]
