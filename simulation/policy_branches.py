"""What settings cost from a point on: a federation is played up to a state, then with each of some settings.

Whole plays cannot teach to change a setting, since what one costs in all says the same of every state on its way.
Plays from a state on say what is best *there*, whatever led to it: rollouts of one step of policy iteration, whose
improved policy is learned as a classifier (Lagoudakis and Parr, ICML 2003), here by regret. In mid-run a setting is
tried to the end; in the first state also for one round, with `BASE` after it. What was spent before is spent: it is
part of the cost of all of them, so late states weigh as little as they can still change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.actions import FIELDS, Budget, Clients
from agent.decisions import Decision
from agent.prices import Prices, cost_to_target
from llm_qfl.federation.errors import FederationError
from simulation.lines import Json
from simulation.policy_arms import TRUSTED, First, Scripted, scored
from simulation.policy_world import Played, World

Options = Mapping[str, Any]
BASE: Options = {"budget": Budget.STEPS_2, "clients": Clients.ALL}
"""What a setting for one round is followed by: of the schedules that were tried, what followed best (decision 27)."""
KINDS = ("followed", "followed", "switched", "random")
"""What led to the states in mid-run: a setting once and then `BASE`, in its place another setting, a random walk."""
TRIED = 10
"""Settings that are tried from such a state on, drawn: they are compared with each other, and time is spared."""
AT_ANY = Prices(0.0, 1.0, 0.0)  # what things cost is put into the states afterwards


@dataclass(frozen=True, eq=False)
class Ground:
    """What is played on.

    Attributes:
        world: the federation.
        first: plan of its first round.
        target: validation accuracy that ends a play once it is held.
        settings: what may be tried from a state on.
    """

    world: World
    first: First
    target: float
    settings: Sequence[Options]

    def play(self, script: Sequence[Options], then: Options) -> Played:
        """Scripted actions, then one setting, to the target."""
        who = Scripted(script, then)
        return self.world.play(scored(who, AT_ANY, first=self.first, agent=TRUSTED), target=self.target)

    def once(self, script: Sequence[Options], options: Options) -> Played:
        """Scripted actions, then these options for a round, then `BASE`, to the target."""
        return self.play([*script, options], BASE)


def play_line(options: Options, played: Played, *, once: bool = False) -> Json:
    """A play as experience: what it was, for a round or to the end, and what it came to."""
    return {
        "once": once,
        "options": {name: option.value for name, option in options.items()},
        "accuracies": [round(value, 5) for value in played.accuracies],
        "circuits": list(played.circuits),
        "bytes": list(played.bytes),
    }


def branches(ground: Ground, walk: Played, random: np.random.Generator) -> list[Json]:
    """Some states of a federation with settings tried from there on.

    Args:
        ground: the federation.
        walk: a random one, to the last round.
        random: draws plays and states.

    Returns:
        `by` (what led there), `after` (questions before), `state`, `masked`, `plays` (whole ones, equal up to there):
        of the first state with all settings once, then of a state of each of `KINDS`, where a play is long enough to
        branch off.

    Raises:
        FederationError: a play ended before anything was asked.
    """
    once = [(options, ground.once((), options)) for options in ground.settings]
    found = [_branch("first", (), _open(walk, math.inf), once, once=True)]
    for kind in KINDS:
        played = walk if kind == "random" else once[int(random.integers(len(ground.settings)))][1]
        if kind == "switched":
            asked = _open(played, ground.target)
            script = [_options(one) for one in asked[: int(random.integers(1, max(len(asked), 2)))]]
            played = ground.play(script, ground.settings[int(random.integers(len(ground.settings)))])
        asked = _open(played, ground.target)
        if len(asked) < 2:
            continue
        past = [_options(one) for one in asked[: int(random.integers(1, len(asked)))]]
        some = [ground.settings[n] for n in sorted(random.permutation(len(ground.settings))[:TRIED])]
        found.append(_branch(kind, past, asked, [(one, ground.play(past, one)) for one in some]))
    return found


def _branch(
    kind: str,
    past: Sequence[Options],
    asked: Sequence[Decision],
    tried: Sequence[tuple[Options, Played]],
    *,
    once: bool = False,
) -> Json:
    if len(asked) <= len(past):
        raise FederationError(f"experience: nothing was asked after {len(past)} decisions")
    plays = [play_line(options, played, once=once) for options, played in tried]
    return {"by": kind, "after": len(past), **situation(asked[len(past)]), "plays": plays}


def _open(played: Played, target: float) -> list[Decision]:
    """Decisions that a scorer was asked for before the target was held."""
    reached = cost_to_target(played.accuracies, [0.0] * len(played.accuracies), target).server_round
    last = len(played.accuracies) if reached is None else reached
    return [one for one in played.decisions if one.action is not None and one.server_round <= last]


def _options(decision: Decision) -> Options:
    return {name: getattr(decision.action, name) for name in FIELDS}


def situation(decision: Decision) -> Json:
    """What a scorer was asked: the state and what was masked in it.

    Raises:
        FederationError: no scorer was asked.
    """
    if decision.state is None:
        raise FederationError(f"experience: round {decision.server_round} was decided without a state")
    return {"state": decision.state.text(), "masked": sorted(decision.masked)}


def situations(line: Json) -> Iterator[tuple[str, list[str], Sequence[Json]]]:
    """States of a federation, what was masked there, and the plays that say what settings cost from there on.

    Args:
        line: of experience.

    Raises:
        FederationError: the line is of a version that did not branch, or not from its first state.
    """
    if not line.get("branches") or line["branches"][0]["by"] != "first":
        raise FederationError("experience: a line has no branches: an older version made it; take another folder")
    first, *later = line["branches"]
    yield first["state"], first["masked"], [*line["plays"], *first["plays"]]
    for one in later:
        yield one["state"], one["masked"], one["plays"]
