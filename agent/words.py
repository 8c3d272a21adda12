"""Decisions in words, for the terminal and the report: what was done, why it was allowed, what the rule had done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from agent.budgets import StepCost
from agent.decisions import Decision
from agent.history import RoundRecord
from agent.rules import Fired, Regulated


@dataclass(frozen=True)
class Told:
    """One decision in words.

    Attributes:
        did: what the round did.
        why: who decided and why that was allowed, or why the rule decided.
        rule: what the ratio rule would have done; empty where it decided.
    """

    did: str
    why: str
    rule: str


def told(decision: Decision, cost: StepCost) -> Told:
    """A decision in words.

    Args:
        decision: the decision.
        cost: of an optimizer step.
    """
    if decision.stop is not None:
        did = f"stop ({decision.stop.rule}): {decision.stop.why}"
    else:
        did = _plan(decision.sites, decision.budgets, decision.select, cost)
        did += f", lambda {decision.weight:g}" if decision.weight else ""
    rule = decision.rule
    if decision.by != "policy" or rule is None:
        instead = ""
    elif rule.stop is not None:
        instead = f"stop ({rule.stop.rule}): {rule.stop.why}"
    else:
        instead = _plan(rule.sites, rule.budgets, rule.select, cost)
    return Told(did, _why(decision), instead)


def _plan(sites: tuple[str, ...], budgets: Mapping[str, int], select: str, cost: StepCost) -> str:
    steps = sorted(cost.steps(budgets[site]) for site in sites)
    span = "0" if not steps else str(steps[0]) if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
    return f"{len(sites)} sites ({select}), {span} steps"


def _why(decision: Decision) -> str:
    notes = [*decision.edits]
    if decision.forced:
        notes.append(f"{len(decision.forced)} sites by the fairness window")
    if decision.fallback is not None:
        return "; ".join([f"rule, {decision.fallback.reason}: {decision.fallback.why}", *notes])
    if decision.by != "policy":
        return "; ".join([decision.by, *notes])
    best = [f"{name} {float(value.max()):.0%}" for name, value in decision.probabilities.items()]
    masked = f"{len(decision.masked)} options masked" if decision.masked else "no option masked"
    return "; ".join([f"policy ({', '.join(best)})", masked, *(notes or ["nothing edited"])])


def losses_in_words(record: RoundRecord, regulated: Mapping[str, Regulated]) -> str:
    """F and L over a round's sites (median, nats), and how many budgets the rule raised, lowered and left."""
    own = [one.qnn_loss for one in record.sites]
    teachers = [one.language_loss for one in record.sites if one.language_loss is not None]

    def middle(losses: list[float]) -> str:
        return f"{median(losses):.3f}" if losses else "-"

    def count(fired: Fired) -> int:
        return sum(one.fired == fired for one in regulated.values())

    return f"F {middle(own)} L {middle(teachers)} grew {count('grew')} shrank {count('shrank')} held {count('held')}"
