"""Is a policy any good? On federations that it never saw, beside settings that know nothing and ones that know all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.actions import FIELDS
from agent.choice import Scorer, mutual_information
from agent.decisions import Decision, conduct
from llm_qfl.federation.errors import FederationError
from simulation.policy_arms import First, Remembered, scored
from simulation.policy_experience import Json, draw_shares, gather, priced, read_lines
from simulation.policy_learning import HELD_OUT, price_list, reopen

PRICES = {"circuits dear": (0.9, 0.08, 0.02), "rounds dear": (0.08, 0.9, 0.02), "mixed": (0.45, 0.45, 0.1)}


@dataclass(frozen=True)
class Judged:
    """A policy on one price list: costs relative to the setting that was best there in hindsight.

    Attributes:
        federations: how many.
        policy: geometric mean of the policy's cost over that of the best setting of the same federation.
        static_one: of the one setting that was best over the federations that the policy learned from.
        reached: share of the policy's runs that reached the target.
        fallback_rate: share of its decisions that the rule took over.
        information: field -> I(state; option), nats.
        milliseconds: median of a decision.
    """

    federations: int
    policy: float
    static_one: float
    reached: float
    fallback_rate: float
    information: Mapping[str, float]
    milliseconds: float | None


def best_setting(lines: Sequence[Json], seed: int = 0, draws: int = 8) -> str:
    """The one setting of the grid with the least mean log cost, over federations and random prices.

    Raises:
        FederationError: no federation has it all.
    """
    random = np.random.default_rng(seed)
    logs: dict[str, list[float]] = {}
    for line in lines:
        for _ in range(draws):
            prices, full = price_list(line, draw_shares(random)), float(line["case"]["rounds"])
            for play in line["plays"]:
                name = setting_name(play)
                logs.setdefault(name, []).append(math.log(priced(play, prices, line["target"], full)))
    most = max((len(values) for values in logs.values()), default=0)
    complete = {name: float(np.mean(values)) for name, values in logs.items() if len(values) == most}
    if not complete:
        raise FederationError("policy: no experience to choose a static setting from; run `llm-qfl policy train`")
    return min(complete, key=lambda name: complete[name])


def setting_name(play: Json) -> str:
    """A play's options as a key."""
    return " ".join(f"{name}={value}" for name, value in play["options"].items())


def judge(
    policy: Scorer,
    ranges: Mapping[str, tuple[int, int]],
    *,
    learned: Sequence[Json],
    folder: Path,
    federations: int,
    until: Callable[[], bool],
    say: Callable[[str], None],
) -> dict[str, Judged]:
    """Play a policy on held-out federations at three price lists.

    Args:
        policy: it.
        ranges: the state's buckets that it knows.
        learned: experience that it learned from: `static-one` is chosen there.
        folder: keeps the held-out federations' plays.
        federations: how many.
        until: true ends the gathering of them.
        say: told what happens.

    Raises:
        FederationError: no held-out federation could be had.
    """
    path = folder / "held-out.jsonl"
    gather(path, range(HELD_OUT, HELD_OUT + federations), folder / "tables", until=until, say=say)
    lines = [line for line in read_lines(path) if "refused" not in line][:federations]
    if not lines:
        raise FederationError("policy evaluate: no held-out federation was played; give it more --minutes")
    one, remembered = best_setting(learned), Remembered(policy)
    found: dict[str, Judged] = {}
    for name, shares in PRICES.items():
        ratios, statics, hits = [], [], []
        decisions: list[Decision] = []
        for line in lines:
            prices, full = price_list(line, shares), float(line["case"]["rounds"])
            make = scored(remembered, prices, first=First(**line["first"]), ranges=ranges)
            played = reopen(line).play(make, target=line["target"])
            costs = {setting_name(play): priced(play, prices, line["target"], full) for play in line["plays"]}
            least = min(costs.values())
            reached = played.to_target(prices, line["target"], max(full, sum(played.costs(prices))))
            ratios.append(math.log(reached.cost / least))
            statics.append(math.log(costs.get(one, costs[_nearest(one, costs)]) / least))
            hits.append(reached.server_round is not None)
            decisions += played.decisions
        told = conduct("policy", decisions, 1.0)
        found[name] = Judged(
            len(lines),
            math.exp(float(np.mean(ratios))),
            math.exp(float(np.mean(statics))),
            float(np.mean(hits)),
            told.fallback_rate,
            {
                field: mutual_information([one.probabilities[field] for one in decisions if one.probabilities])
                for field in FIELDS
            },
            told.milliseconds,
        )
        say(f"{name}: policy {found[name].policy:.2f}, static-one ({one}) {found[name].static_one:.2f} of the best")
    return found


def _nearest(name: str, costs: Mapping[str, float]) -> str:
    """Where a setting asks for more sites than are there: the same budget with all of them."""
    budget = name.split(maxsplit=1)[0]
    return next((other for other in costs if other == f"{budget} clients=all"), min(costs, key=lambda key: costs[key]))
