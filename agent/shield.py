"""What keeps a decision safe: masks before the choice, edits after it, each with its reason.

Options that are not allowed are masked; what options cannot know of each other (a round's cost) is edited.

Limits: budgets within [least, cap] of the run; the run's evaluations; at least two sites where there are two; a stop
only after `stop-after`, with the patience met and a validation loss near its best; soft labels and shots only where
they exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.actions import SIZES, Action, Budget, Clients, Halt, Lambda, Shots
from agent.budgets import StepCost, fit
from agent.history import History
from agent.termination import Termination

Mask = Mapping[str, tuple[bool, ...]]


@dataclass(frozen=True)
class Limits:
    """What the shield holds a round to.

    Attributes:
        cost: of an optimizer step.
        least, cap: evaluations of a site's budget.
        left: evaluations that the run has left, or None.
        there: sites that are there and free.
        teaches: are there soft labels?
        samples: does any site's backend sample?
        min_clients: fewest sites; with fewer there, no number of them is allowed and the rule decides.
        patience: closed rounds that `stop` needs in which validation did not improve.
    """

    cost: StepCost
    least: int
    cap: int
    left: int | None
    there: int
    teaches: bool
    samples: bool
    min_clients: int = 2
    patience: int = 3


@dataclass(frozen=True)
class Masked:
    """The allowed options of every field, and why others are not.

    Attributes:
        allowed: field -> one flag an option.
        reasons: `field option` -> why it is masked.
    """

    allowed: Mask
    reasons: Mapping[str, str]

    @property
    def empty(self) -> tuple[str, ...]:
        """Fields without any allowed option: nothing can be chosen."""
        return tuple(name for name, flags in self.allowed.items() if not any(flags))


def mask(limits: Limits, budgets: Mapping[str, int], history: History, stops: Termination) -> Masked:
    """The options that this round may take.

    Args:
        limits: of the round.
        budgets: evaluations of the sites that are there, as they stand.
        history: closed rounds.
        stops: when the run is good enough to end.
    """
    why: dict[str, str] = {}
    _mask_budgets(limits, budgets, why)
    fewest = max(limits.min_clients, 1)
    for option in Clients:
        count = option.count(limits.there)
        if count > limits.there:
            why[f"clients {option.value}"] = f"{limits.there} sites are there"
        elif count < fewest:
            why[f"clients {option.value}"] = f"at least {fewest} sites"
        elif limits.left is not None and count * limits.cost.least > limits.left:
            why[f"clients {option.value}"] = f"{limits.left} evaluations are left"
    if not limits.teaches:
        why |= {f"weight {one.value}": "no soft labels" for one in Lambda if one is not Lambda.NONE}
    if not limits.samples:
        why |= {f"shots {one.value}": "no backend samples" for one in Shots if one is not Shots.CONFIGURED}
    if (problem := _no_stop(limits, history, stops)) is not None:
        why[f"stop {Halt.STOP.value}"] = problem
    return Masked(allowed_of(why), why)


def _mask_budgets(limits: Limits, budgets: Mapping[str, int], why: dict[str, str]) -> None:
    known = list(budgets.values())
    for option in Budget:
        if option.steps is not None:
            evaluations = limits.cost.evaluations(option.steps)
            if evaluations < limits.least:
                why[f"budget {option.value}"] = f"below {limits.least} evaluations"
            elif evaluations > limits.cap:
                why[f"budget {option.value}"] = f"above {limits.cap} evaluations"
        elif not known:
            why[f"budget {option.value}"] = "no budget to scale yet"
        elif (option.scale or 1.0) > 1 and min(known) >= limits.cap:
            why[f"budget {option.value}"] = "at the cap"
        elif (option.scale or 1.0) < 1 and max(known) <= limits.least:
            why[f"budget {option.value}"] = "at the minimum"


def _no_stop(limits: Limits, history: History, stops: Termination) -> str | None:
    """Why the run may not stop by choice, or None."""
    if not stops.may_stop(history):
        return f"not before round {stops.after}, nor with a loss above {stops.floor:.3f} or the run's best"
    losses = history.losses()
    if len(losses) <= limits.patience:
        return f"patience of {limits.patience} rounds"
    if min(losses[-limits.patience :]) < min(losses[: -limits.patience]) - stops.tolerance:
        return f"validation loss still falls by more than {stops.tolerance:g}"
    return None


@dataclass(frozen=True)
class Shielded:
    """A decision that may be carried out.

    Attributes:
        budgets: evaluations of each chosen site.
        edits: what was changed of the choice, and why.
        affordable: False: the run has not even one step for each left, and ends.
    """

    budgets: Mapping[str, int]
    edits: tuple[str, ...]
    affordable: bool = True


def local_budgets(action: Action, limits: Limits, budgets: Mapping[str, int]) -> dict[str, int]:
    """What an action asks of each site, within [least, cap].

    Args:
        action: the choice.
        limits: of the round.
        budgets: evaluations of the chosen sites, as they stand.
    """
    steps, scale = action.budget.steps, action.budget.scale
    wanted = {
        site: limits.cost.evaluations(steps) if steps is not None else int(budget * (scale or 1.0))
        for site, budget in budgets.items()
    }
    return {site: min(max(one, limits.least), limits.cap) for site, one in wanted.items()}


def shield(wanted: Mapping[str, int], limits: Limits) -> Shielded:
    """Hold a round to what the run has left.

    Args:
        wanted: evaluations by chosen site.
        limits: of the round.
    """
    edits = []
    clipped = {site: min(max(one, limits.least), limits.cap) for site, one in wanted.items()}
    if moved := sum(clipped[site] != one for site, one in wanted.items()):
        edits.append(f"{moved} budgets into {limits.least}..{limits.cap} evaluations")
    cut = fit(clipped, limits.left, limits.cost)
    if cut is None:
        text = f"{limits.left} evaluations are left, one step each of {len(wanted)} sites needs more"
        return Shielded({}, (*edits, text), affordable=False)
    if cut != clipped:
        edits.append(f"budgets cut to the {limits.left} evaluations left")
    return Shielded(cut, tuple(edits))


def allowed_of(reasons: Iterable[str]) -> dict[str, tuple[bool, ...]]:
    """The mask that a decision's line recorded.

    Args:
        reasons: the keys of `masked`: `field option`.
    """
    gone = set(reasons)
    return {
        name: tuple(f"{name} {option.value}" not in gone for option in kind) for name, kind in Action.FIELDS.items()
    }


def everything() -> dict[str, tuple[bool, ...]]:
    """A mask that allows every option."""
    return {name: (True,) * size for name, size in SIZES.items()}
