"""What settings cost from a point on: a federation is played up to a state, then with each of some settings to its end.

Whole plays cannot teach to change a setting, since what one costs in all says the same of every state on its way.
Plays from a state on say what is best *there*, whatever led to it: rollouts of one step of policy iteration, whose
improved policy is learned as a classifier (Lagoudakis and Parr, ICML 2003), here by regret. What was spent before is
spent: it is part of the cost of all of them, so late states weigh as little as they can still change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.actions import FIELDS
from agent.decisions import Decision
from agent.prices import Prices, cost_to_target
from llm_qfl.federation.errors import FederationError
from simulation.policy_arms import TRUSTED, First, Scripted, scored
from simulation.policy_world import Played, World

KINDS = ("constant", "switched", "random")
"""What led to the states of a federation: a setting, two of them, a random walk over all actions."""
TRIED = 10
"""Settings that are tried from a state on, drawn: they are compared with each other, and what is spared is time."""
AT_ANY = Prices(0.0, 1.0, 0.0)  # what things cost is put into the states afterwards
Json = dict[str, Any]
Options = Mapping[str, Any]


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


def play_line(options: Options, played: Played) -> Json:
    """A play as experience: what it was and what it came to."""
    return {
        "options": {name: option.value for name, option in options.items()},
        "accuracies": [round(value, 5) for value in played.accuracies],
        "circuits": list(played.circuits),
        "bytes": list(played.bytes),
    }


def branches(ground: Ground, plays: Sequence[Played], walk: Played, random: np.random.Generator) -> list[Json]:
    """Some states of a federation with settings played from there on.

    Args:
        ground: the federation.
        plays: of the settings, in their order.
        walk: a random one, to the last round.
        random: draws plays and states.

    Returns:
        `by` (what led there), `after` (questions before), `state`, `masked`, `plays` (whole ones, equal up to there).
        Fewer than `KINDS` where plays are too short to branch off.
    """
    found = []
    for kind in KINDS:
        played = walk if kind == "random" else plays[int(random.integers(len(plays)))]
        if kind == "switched":
            asked = _open(played, ground.target)
            script = [_options(one) for one in asked[: int(random.integers(1, max(len(asked), 2)))]]
            played = ground.play(script, ground.settings[int(random.integers(len(ground.settings)))])
        asked = _open(played, ground.target)
        if len(asked) < 2:
            continue
        after = int(random.integers(1, len(asked)))
        script = [_options(one) for one in asked[:after]]
        tried = [ground.settings[n] for n in sorted(random.permutation(len(ground.settings))[:TRIED])]
        found.append(
            {
                "by": kind,
                "after": after,
                **situation(asked[after]),
                "plays": [play_line(then, ground.play(script, then)) for then in tried],
            }
        )
    return found


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

    The first is the state before the second round (the first has no history), which all whole plays begin with.

    Args:
        line: of experience.

    Raises:
        FederationError: the line is of a version that did not branch.
    """
    if "branches" not in line:
        raise FederationError("experience: a line has no branches: an older version made it; take another folder")
    yield line["state"], line["masked"], line["plays"]
    for one in line["branches"]:
        yield one["state"], one["masked"], one["plays"]
