"""Decisions in words, for the terminal and the report: what was done, why it was allowed, what the rule had done.

Made from the lines of `decisions.jsonl` and `rounds.jsonl`, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from agent.budgets import StepCost

Line = Mapping[str, Any]
FIRED = ("grew", "shrank", "held")


@dataclass(frozen=True)
class Told:
    """One decision in words.

    Attributes:
        did: what the round did.
        by: who decided.
        why: why that was allowed, or why the rule decided.
        rule: what the ratio rule would have done; empty where it did.
    """

    did: str
    by: str
    why: str
    rule: str


def told(line: Line, cost: StepCost) -> Told:
    """A decision in words.

    Args:
        line: of `decisions.jsonl`.
        cost: of an optimizer step.
    """
    plan, rule = line["plan"], line["rule"]
    did = _plan(plan, cost)
    if plan["stop"] is None and plan["lambda"]:
        did += f", lambda {plan['lambda']:g}"
    instead = ""
    if rule is not None and (line["by"] == "policy" or (rule["stop"] and not plan["stop"])):
        instead = _plan(rule, cost)
    return Told(did, str(line["by"]), _why(line), instead)


def sentence(line: Line, cost: StepCost) -> str:
    """A decision on one line of the terminal."""
    words = told(line, cost)
    parts = [f"{words.by}: {words.did}", words.why, f"the rule: {words.rule}" if words.rule else ""]
    return "; ".join(part for part in parts if part)


def steps_of(plan: Line, cost: StepCost) -> list[int]:
    """Local optimizer steps of a plan's sites, fewest first."""
    return sorted(cost.steps(int(budget)) for budget in plan["budgets"].values())


def _plan(plan: Line, cost: StepCost) -> str:
    if plan["stop"] is not None:
        return f"stop ({plan['stop']['rule']}): {plan['stop']['why']}"
    steps = steps_of(plan, cost)
    span = "0" if not steps else str(steps[0]) if steps[0] == steps[-1] else f"{steps[0]} to {steps[-1]}"
    return f"{_count(len(plan['sites']), 'site')} ({plan['select']}), {span} step{'' if span == '1' else 's'}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _why(line: Line) -> str:
    notes = [str(edit) for edit in line["shield_edits"]]
    if forced := line["plan"]["forced"]:
        notes.append(f"{_count(len(forced), 'site')} by the fairness window")
    if (fallback := line["fallback"]) is not None:
        return "; ".join([f"{fallback['reason']}: {fallback['why']}", *notes])
    if line["by"] != "policy":
        return "; ".join(notes)
    masked = len(line["masked"])
    return "; ".join(
        [f"{_count(masked, 'option')} masked" if masked else "no option masked", *(notes or ["nothing edited"])]
    )


def choices(line: Line) -> dict[str, str]:
    """Field -> the policy's option with its probability; where the rule took over, the most probable one."""
    action: Line = line["action"] or {}
    found = {}
    for name, by_option in line["probabilities"].items():
        option = action.get(name, max(by_option, key=by_option.__getitem__))
        found[name] = f"{option} ({by_option[option]:.0%})"
    return found


def losses_in_words(line: Line) -> str:
    """F and L over a round's sites (median, nats), and how many budgets the rule raised, lowered and left.

    Args:
        line: of `rounds.jsonl`, with `language_losses` and `regulated`.
    """
    teachers = line["language_losses"]
    fired = list(line["regulated"].values())
    counts = " ".join(f"{what} {fired.count(what)}" for what in FIRED)
    return (
        f"F {_middle([one['trained_loss'] for one in line['clients']])} "
        f"L {_middle([teachers.get(one['site']) for one in line['clients']])} {counts}"
    )


def _middle(losses: Sequence[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{median(known):.3f}" if known else "-"
