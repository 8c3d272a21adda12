"""The regulated optimizer: five rules that let a site's budget follow r = F / L, both in nats on the same rows.

Source: LLM-QFL, its published code; the paper's text was not at hand, so nothing here quotes it. What is ours: the
mirrored shrink (the code's budgets never fall), the dead band, limits in objective evaluations, and that losses of
two units or of two splits are never compared. `paper` keeps the ratchet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agent.budgets import StepCost
from agent.history import RoundRecord
from llm_qfl.federation.config_agent import AgentConfig, Rule

RULES: tuple[Rule, ...] = ("incremental", "dynamic", "logarithmic", "adaptive", "hybrid")
Fired = Literal["grew", "shrank", "held"]
ROUNDING = 1e-9  # .6 / .4 is a hair below 1.5: floors forgive that
MOST = 1e6  # of a ratio, and of its inverse: a model without error must not make a number that is none


def ratio_of(qnn_loss: float, language_loss: float) -> float:
    """R = F / L, within [1e-6, 1e6]; 1 where both are zero."""
    if qnn_loss == language_loss:
        return 1.0
    return min(max(qnn_loss / language_loss, 1 / MOST), MOST) if language_loss > 0 else MOST


def growth(rule: Rule, budget: float, ratio: float, increment: float) -> float:
    """A rule's next budget for ratio > 1, before floor and cap.

    Args:
        rule: its name.
        budget: m.
        ratio: r = F / L.
        increment: I of `hybrid`, the most that it adds.
    """
    if rule == "incremental":
        return budget + budget * (ratio - 1)
    if rule == "dynamic":
        return 0.5 * budget + 0.5 * budget * ratio
    if rule == "logarithmic":
        return budget + math.log1p(ratio) * budget
    if rule == "adaptive":
        return budget * ratio
    return budget + min(math.floor(budget * ratio + ROUNDING), increment)


def grown(rule: Rule, budget: int, ratio: float, increment: int, cap: int) -> int:
    """The next budget for ratio > 1: the rule, then floor, then the cap."""
    return min(math.floor(growth(rule, budget, ratio, increment) + ROUNDING), cap)


def shrunk(rule: Rule, budget: int, ratio: float, increment: int) -> int:
    """The mirror image for ratio < 1: the smallest budget that 1/ratio would have let grow to this one or beyond."""
    low, high = 1, budget
    while low < high:  # growth rises with the budget
        middle = (low + high) // 2
        if growth(rule, middle, 1 / ratio, increment) >= budget - ROUNDING:
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True)
class Regulation:
    """A rule with its limits, in objective evaluations.

    Attributes:
        rule: its name.
        symmetric: may budgets fall?
        dead_band: ratios within (1 - band, 1 + band) change nothing; not in `paper` regulation.
        increment: of `hybrid`.
        from_round: first round with a regulated budget.
        least, cap: limits of a budget.
    """

    rule: Rule
    symmetric: bool
    dead_band: float
    increment: int
    from_round: int
    least: int
    cap: int

    @classmethod
    def of(cls, agent: AgentConfig, cost: StepCost) -> Regulation:
        """From the run config."""
        return cls(
            rule=agent.rule,
            symmetric=agent.regulation == "symmetric",
            dead_band=agent.dead_band if agent.regulation == "symmetric" else 0.0,
            increment=agent.increment_steps * cost.per_step,
            from_round=agent.from_round,
            least=cost.evaluations(agent.min_steps),
            cap=max(cost.evaluations(agent.cap_steps), cost.least),
        )


@dataclass(frozen=True)
class Regulated:
    """What a rule did to one site's budget, and why."""

    rule: Rule
    fired: Fired
    before: int
    after: int
    ratio: float | None
    why: str


def regulate(
    regulation: Regulation, budget: int, qnn_loss: float, language_loss: float | None, next_round: int
) -> Regulated:
    """One site's next budget.

    Args:
        regulation: the rule.
        budget: m_i, evaluations, of the round that closed.
        qnn_loss: F_i, nats.
        language_loss: L_i, nats on the same rows, or None.
        next_round: the round that the budget is for.
    """

    def held(why: str, ratio: float | None) -> Regulated:
        return Regulated(regulation.rule, "held", budget, within, ratio, why)

    within = min(max(budget, regulation.least), regulation.cap)
    if language_loss is None:
        return held("no language loss", None)
    if not (math.isfinite(qnn_loss) and math.isfinite(language_loss)):
        return held("a loss is not finite", None)
    if qnn_loss == language_loss:
        return held("losses equal", 1.0)
    ratio = ratio_of(qnn_loss, language_loss)
    if next_round < regulation.from_round:
        return held(f"not before round {regulation.from_round}", ratio)
    if regulation.dead_band and 1 / (1 + regulation.dead_band) < ratio < 1 + regulation.dead_band:
        return held("within the dead band", ratio)
    if ratio > 1:
        after = max(grown(regulation.rule, within, ratio, regulation.increment, regulation.cap), within)
        if after == within:
            return held("at the cap" if within >= regulation.cap else "too small a step", ratio)
        return Regulated(regulation.rule, "grew", budget, after, ratio, "QNN worse than the language model")
    if not regulation.symmetric:
        return held("QNN better than the language model, budgets never fall", ratio)
    after = max(shrunk(regulation.rule, within, ratio, regulation.increment), regulation.least)
    if after == within:
        return held("at the minimum" if within <= regulation.least else "too small a step", ratio)
    return Regulated(regulation.rule, "shrank", budget, after, ratio, "QNN better than the language model")


def regulate_sites(
    regulation: Regulation, budgets: Mapping[str, int], record: RoundRecord
) -> tuple[dict[str, int], dict[str, Regulated]]:
    """Every site's budget after a closed round; a site that gave no answer keeps its own.

    Args:
        regulation: the rule.
        budgets: evaluations by site; a site that is not in it has none yet and is passed over.
        record: the round.

    Returns:
        The budgets, and what the rule did at each site that answered.
    """
    done = {
        one.site: regulate(regulation, budgets[one.site], one.qnn_loss, one.language_loss, record.server_round + 1)
        for one in record.sites
        if one.site in budgets
    }
    return {**budgets, **{site: result.after for site, result in done.items()}}, done


def replayed(regulation: Regulation, rounds: Iterable[RoundRecord], first: int) -> tuple[Mapping[str, Regulated], ...]:
    """What a rule makes of the losses of rounds as they were, its own budgets from round to round.

    Args:
        regulation: the rule.
        rounds: closed rounds, oldest first.
        first: evaluations of a site that has no budget yet.
    """
    budgets: dict[str, int] = {}
    found: list[Mapping[str, Regulated]] = []
    for record in rounds:
        standing = {one.site: first for one in record.sites} | budgets
        budgets, done = regulate_sites(regulation, standing, record)
        found.append(done)
    return tuple(found)


@dataclass(frozen=True)
class FiredShare:
    """How often a rule did something, over rounds that had a history.

    Attributes:
        rounds: how many.
        grew, shrank: share of the rounds in which any site's budget rose, or fell.
        site_grew, site_shrank: share of the answers.
        held: reason -> how many answers.
    """

    rounds: int
    grew: float
    shrank: float
    site_grew: float
    site_shrank: float
    held: Mapping[str, int] = field(default_factory=dict)

    @property
    def inert(self) -> bool:
        """Did no budget ever rise?

        The rule is there to spend more where the QNN is behind. Where that never happened, what it saved is what any
        small fixed budget saves, and a table must not count it as the rule's win.
        """
        return self.grew == 0


def share_fired(rounds: Sequence[Iterable[Regulated]]) -> FiredShare:
    """Count what a rule did.

    Args:
        rounds: what it did at each site, round by round.
    """
    lines = [list(one) for one in rounds]
    every = [result for line in lines for result in line]
    count, answers = max(len(lines), 1), max(len(every), 1)
    held: dict[str, int] = {}
    for result in every:
        if result.fired == "held":
            held[result.why] = held.get(result.why, 0) + 1

    def among(fired: Fired) -> tuple[float, float]:
        in_rounds = sum(any(result.fired == fired for result in line) for line in lines)
        return in_rounds / count, sum(result.fired == fired for result in every) / answers

    (grew, site_grew), (shrank, site_shrank) = among("grew"), among("shrank")
    return FiredShare(len(lines), grew, shrank, site_grew, site_shrank, dict(sorted(held.items())))
