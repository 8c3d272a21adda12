"""A decision, its line in `decisions.jsonl`, and what a run's decisions amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from agent.actions import FIELDS, Action
from agent.choice import Fallback, mutual_information
from agent.rules import Regulated
from agent.shield import allowed_of
from agent.state import State
from agent.termination import Stop
from llm_qfl.federation.config_agent import Mode, Selection
from llm_qfl.federation.types import Array

By = Literal["fixed", "rule", "policy"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Proposal:
    """What the ratio rule would do, or did (but for a stop, where a policy is at work).

    Attributes:
        sites: chosen sites.
        budgets: evaluations by chosen site.
        select: how they were chosen.
        forced: sites that the fairness window brought in.
        stop: why it would stop, or None.
    """

    sites: tuple[str, ...]
    budgets: Mapping[str, int]
    select: Selection
    forced: tuple[str, ...] = ()
    stop: Stop | None = None


@dataclass(frozen=True)
class Decision:
    """What a round does, who decided it and why it was allowed.

    Attributes:
        server_round: the round.
        by: who decided.
        sites: who trains; empty where the run stops.
        budgets: evaluations by site.
        weight: lambda of the distillation.
        shots: of every circuit at sites that sample.
        stop: why the run ends before this round, or None.
        select: how the sites were chosen.
        state: what the policy saw, or None where none was asked.
        rule: what the ratio rule would have done, or did.
        action: the policy's choice before the shield, or None.
        probabilities: pi(.|s), field by field; with `agent.online-rate` as the bandit tilted them.
        preferences: of the bandit (`agent.online-rate`), nats; empty where it has none.
        masked: option -> why it was not allowed.
        edits: what the shield changed.
        forced: sites that the fairness window brought in.
        fallback: why the policy did not decide, or None.
        regulated: what the rule did at each site that answered last.
        milliseconds: of the decision.
    """

    server_round: int
    by: By
    sites: tuple[str, ...]
    budgets: Mapping[str, int]
    weight: float
    shots: int
    stop: Stop | None
    select: Selection
    state: State | None = None
    rule: Proposal | None = None
    action: Action | None = None
    probabilities: Mapping[str, Array] = field(default_factory=dict)
    preferences: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    masked: Mapping[str, str] = field(default_factory=dict)
    edits: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()
    fallback: Fallback | None = None
    regulated: Mapping[str, Regulated] = field(default_factory=dict)
    milliseconds: float = 0.0


def decision_line(decision: Decision, reward: float | None = None, reward_round: int | None = None) -> Json:
    """One decision as a line of `decisions.jsonl`.

    Args:
        decision: the decision.
        reward: the newest reward that is known, or None.
        reward_round: the round whose decision earned it: with federated validation the one before.
    """
    return {
        "round": decision.server_round,
        "by": decision.by,
        "state": None if decision.state is None else decision.state.text(),
        "state_hash": None if decision.state is None else decision.state.digest(),
        "probabilities": {name: _by_option(name, value) for name, value in decision.probabilities.items()},
        "preferences": {name: list(values) for name, values in decision.preferences.items()},
        "action": None if decision.action is None else decision.action.words(),
        "masked": dict(decision.masked),
        "shield_edits": list(decision.edits),
        "fallback": None
        if decision.fallback is None
        else {"reason": decision.fallback.reason, "why": decision.fallback.why, "counts": decision.fallback.counts},
        "plan": {
            "sites": list(decision.sites),
            "budgets": dict(decision.budgets),
            "select": decision.select,
            "forced": list(decision.forced),
            "lambda": decision.weight,
            "shots": decision.shots,
            "stop": _stop(decision.stop),
        },
        "rule": None if decision.rule is None else _proposal(decision.rule),
        "regulated": {
            site: {"fired": one.fired, "before": one.before, "after": one.after, "ratio": one.ratio, "why": one.why}
            for site, one in sorted(decision.regulated.items())
        },
        "reward": reward,
        "reward_of_round": reward_round,
        "milliseconds": round(decision.milliseconds, 2),
    }


def _by_option(name: str, values: Array) -> dict[str, float]:
    return {str(option.value): float(value) for option, value in zip(FIELDS[name], values, strict=True)}


def _stop(stop: Stop | None) -> Json | None:
    return None if stop is None else {"rule": stop.rule, "why": stop.why}


def _proposal(rule: Proposal) -> Json:
    return {
        "sites": list(rule.sites),
        "budgets": dict(rule.budgets),
        "select": rule.select,
        "forced": list(rule.forced),
        "stop": _stop(rule.stop),
    }


@dataclass(frozen=True)
class Conduct:
    """What a run's decisions amount to.

    Attributes:
        kind: who decided: the mode's rule, or `policy`, or `rule` where the policy fell back too often.
        decisions: how many.
        with_history: those before which a round had closed.
        fallbacks: those of them that the rule took over.
        reasons: reason -> how often.
        information: field -> I(state; option | mask), nats, over the states that the policy was asked in.
        milliseconds: median of the policy's own decisions, or None.
    """

    kind: str
    decisions: int
    with_history: int
    fallbacks: int
    reasons: Mapping[str, int]
    information: Mapping[str, float]
    milliseconds: float | None

    @property
    def fallback_rate(self) -> float:
        """Share of the decisions with a history."""
        return self.fallbacks / self.with_history if self.with_history else 0.0

    def as_json(self) -> Json:
        """For `summary.json`."""
        return {
            "kind": self.kind,
            "decisions": self.decisions,
            "with_history": self.with_history,
            "fallbacks": self.fallbacks,
            "fallback_rate": self.fallback_rate,
            "reasons": dict(self.reasons),
            "mutual_information": dict(self.information),
            "milliseconds": self.milliseconds,
        }


def conduct(
    mode: Mode, decisions: Sequence[Decision], max_fallback: float, past: Sequence[Mapping[str, Any]] = ()
) -> Conduct:
    """Sum a run's decisions up.

    Args:
        mode: `agent.mode`.
        decisions: of the run.
        max_fallback: share of fallbacks above which the run is the rule's.
        past: lines of decisions before those, where the run went on from a checkpoint.
    """
    lines = [*past, *(decision_line(one) for one in decisions)]
    fallbacks = [line["fallback"] for line in lines if line["fallback"] is not None]
    fallen = [one for one in fallbacks if one["counts"]]
    asked = [line for line in lines if line["probabilities"]]
    own = [float(line["milliseconds"]) for line in lines if line["by"] == "policy"]
    reasons: dict[str, int] = {}
    for one in fallen:
        reasons[one["reason"]] = reasons.get(one["reason"], 0) + 1
    with_history = len(lines) - (len(fallbacks) - len(fallen))
    kind: str = mode
    if mode == "policy" and (not own or len(fallen) > max_fallback * with_history):
        kind = "rule"
    return Conduct(
        kind=kind,
        decisions=len(lines),
        with_history=with_history,
        fallbacks=len(fallen),
        reasons=dict(sorted(reasons.items())),
        information={name: _information(asked, name) for name in FIELDS} if asked else {},
        milliseconds=float(np.median(own)) if own else None,
    )


def _information(asked: Sequence[Mapping[str, Any]], name: str) -> float:
    """I(state; option | mask) of a field."""
    policies = [np.array(list(line["probabilities"][name].values()), np.float64) for line in asked]
    return mutual_information(policies, [allowed_of(line["masked"])[name] for line in asked])
