"""What the policy learns from: many small federations, each played with every setting of a grid, also from mid-run on.

Prices change nothing that happens in a federation under a fixed setting, so one line of experience says what is best at
*any* prices: the plays are priced afterwards. Lines are appended one by one; a run that was killed goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.actions import Clients
from agent.prices import Prices, cost_to_target
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.errors import DataError, FederationError
from simulation.lines import Json, mend, read_lines
from simulation.policy_arms import COUNTS, STEPS, TRUSTED, First, Setting, Uniform, scored, static
from simulation.policy_branches import AT_ANY, Ground, branches, play_line
from simulation.policy_tables import KINDS, write_table
from simulation.policy_teachers import stand_in
from simulation.policy_world import Case, World, open_world

SHARE_HELD = 0.98  # of the tuned fixed plan's accuracy
TUNED = (2, 5, 10)
TAIL = 3  # rounds whose mean accuracy is the final one: a single federation's last round is noisy


@dataclass(frozen=True)
class Draw:
    """A randomised federation.

    Attributes:
        case: data, sites, split, seed.
        quality: of the stand-in teacher; 0 for none.
        first: the plan of its first round.
    """

    case: Case
    quality: float
    first: First


def draw_federation(number: int, tables: Path, *, rounds: int = 0) -> Draw:
    """The federation of a number: data set, sites, split, step size, circuit, teacher, first round.

    Args:
        number: equal numbers give equal federations; training takes those below 100,000, evaluation others.
        tables: folder of the data sets.
        rounds: of the run; 0 draws it.
    """
    random = np.random.default_rng([7, number])
    kind = str(random.choice(KINDS, p=[0.4, 0.35, 0.2, 0.02, 0.03]))
    source = write_table(kind, number if kind not in ("iris", "wine") else 0, tables)
    often = [0.07, 0.08, 0.15, 0.15, 0.15, 0.2, 0.2]
    sites = 4 if kind in ("iris", "wine") else int(random.choice([2, 3, 4, 6, 8, 10, 12], p=often))
    more = (
        ("data.reduction", str(random.choice(["discriminant", "pca", "pca"]))),
        ("quantum.layers", int(random.choice([2, 3]))),
        ("training.learning-rate", float(random.choice([0.05, 0.1, 0.2]))),
        ("agent.distill-temperature", 2.0),
    )
    alpha = 5.0 if kind in ("iris", "wine") else float(random.choice([0.1, 0.2, 0.5, 1.0]))
    quality = float(random.choice([0.0, 0.3, 1.0, 2.0]))
    first = First(int(random.choice([1, 2, 5, 10])), float(random.choice([0.2, 0.5, 1.0])))
    length = rounds or int(random.choice([25, 40]))
    return Draw(Case(f"csv:{source}", sites, alpha, number % 2**31, length, more), quality, first)


def draw_shares(random: np.random.Generator) -> tuple[float, float, float]:
    """How a fixed round's cost divides into circuits, the round itself and bytes; often one of them is nearly all."""
    found = random.dirichlet([0.5, 0.5, 0.25])
    return float(found[0]), float(found[1]), float(found[2])


def open_draw(draw: Draw) -> World:
    """Open a drawn federation."""
    return open_world(draw.case, stand_in(draw.quality, seed=draw.case.seed) if draw.quality else None)


def experience(draw: Draw, *, branched: bool = True) -> Json:
    """Play a federation with every setting of the grid.

    Args:
        draw: the federation.
        branched: also from some states on (what is learned from; a federation to judge on needs none).

    Raises:
        LlmQflError: the federation cannot be had (a split that no draw gives, say).
    """
    world = open_draw(draw)
    tuned = [world.play(static(Setting(steps, Clients.ALL))) for steps in TUNED]
    finals = [float(np.mean(one.accuracies[-TAIL:])) for one in tuned]
    best = int(np.argmax(finals))
    target = SHARE_HELD * finals[best]
    fixed = tuned[best]
    plan = world.base(AgentConfig(mode="policy")).setting
    settings: list[Mapping[str, Any]] = [
        {"budget": budget, "clients": count}
        for budget in STEPS
        for count in COUNTS
        if count is Clients.ALL or count.count(world.case.sites) < world.case.sites
    ]
    ground = Ground(world, draw.first, target, settings)
    plays = [play_line(options, ground.play((), options)) for options in settings]
    return {
        "case": draw.case.to_json(),
        "quality": draw.quality,
        "first": asdict(draw.first),
        "teacher": world.teacher.kind,
        "target": target,
        "fixed": {"circuits": float(np.mean(fixed.circuits)), "bytes": float(np.mean(fixed.bytes))},
        "plan": {"circuits": plan.round_circuits, "bytes": plan.round_bytes},
        "plays": plays,
        "branches": _branches(ground, draw.case.seed) if branched else [],
    }


def _branches(ground: Ground, seed: int) -> list[Json]:
    wander = scored(Uniform(), AT_ANY, first=ground.first, agent={**TRUSTED, "choice": "sample"})
    return branches(ground, ground.world.play(wander), np.random.default_rng([11, seed]))


def priced(play: Json, prices: Prices, target: float, full: float) -> float:
    """Priced cost to the target; a play that never gets there counts the full budget, or more where it spent more."""
    costs = [prices.cost(c, 1, b) for c, b in zip(play["circuits"], play["bytes"], strict=True)]
    reached = cost_to_target(play["accuracies"], costs, target)
    return reached.cost if reached.server_round is not None else max(full, sum(costs))


def gather(
    path: Path,
    numbers: Sequence[int],
    tables: Path,
    *,
    until: Callable[[], bool],
    say: Callable[[str], None],
    branched: bool = True,
) -> int:
    """Append experience of these federations to a JSONL file; those that are in it already are passed over.

    Args:
        path: the file.
        numbers: of the federations.
        tables: folder of the data sets.
        until: true ends it after the federation at hand.
        say: told of each.
        branched: as in `experience`.

    Returns:
        Lines that the file has now.
    """
    mend(path)
    done = {line["number"] for line in read_lines(path)}
    for number in numbers:
        if until():
            break
        if number in done:
            continue
        try:
            line = experience(draw_federation(number, tables), branched=branched)
        except (DataError, FederationError) as error:  # no such split, one class: noted, and passed over next time
            line = {"refused": f"{type(error).__name__}: {error}"}
        with path.open("a") as file:
            file.write(json.dumps({"number": number, **line}) + "\n")
        done.add(number)
        say(f"federation {number}: {line.get('refused') or str(len(line['plays'])) + ' plays'}")
    return len(done)
