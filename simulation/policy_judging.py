"""Is a policy any good? On federations that it never saw, beside settings that know nothing and ones that know all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t, ttest_1samp

from agent.choice import Scorer
from agent.decisions import Decision, conduct
from agent.prices import Prices
from llm_qfl.federation.errors import FederationError
from simulation.lines import Json, read_lines
from simulation.policy_arms import First, Remembered, Shuffled, scored
from simulation.policy_experience import draw_shares, gather, priced
from simulation.policy_learning import HELD_OUT, price_list, reopen
from simulation.policy_lessons import lessons

SIGNIFICANT = 0.05
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
        information: field -> I(state; option | mask), nats.
        milliseconds: median of a decision.
        shuffled: what it costs more where the policy is shown states that it met elsewhere: log of the ratio for each
            federation.
        beside: log of the policy's cost over `static-one`'s, for each federation.
    """

    federations: int
    policy: float
    static_one: float
    reached: float
    fallback_rate: float
    information: Mapping[str, float]
    milliseconds: float | None
    shuffled: tuple[float, ...] = ()
    beside: tuple[float, ...] = ()


@dataclass(frozen=True)
class Dependence:
    """Do a policy's actions depend on its state to any use?

    Attributes:
        ratio: geometric mean of the cost with shuffled states over the cost with true ones.
        p: of a one-sided paired t-test that shuffling makes it dearer; a federation counts once, its price lists
            together; NaN for fewer than two federations.
    """

    ratio: float
    p: float

    @property
    def static(self) -> bool:
        """Nothing shows that they do."""
        return not self.p < SIGNIFICANT


def dependence(found: Iterable[Judged]) -> Dependence:
    """Over all price lists.

    Raises:
        FederationError: nothing was shuffled.
    """
    table = np.array([one.shuffled for one in found])
    if not table.size:
        raise FederationError("policy evaluate: nothing was played with shuffled states")
    means = table.mean(axis=0)
    p = float(ttest_1samp(means, 0.0, alternative="greater").pvalue) if len(means) > 1 else math.nan
    return Dependence(math.exp(float(means.mean())), p)


def interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t; NaN where there is but one value."""
    units = np.asarray(values, dtype=np.float64)
    middle, count = float(units.mean()), len(units)
    half = float(t.ppf(0.975, count - 1) * units.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return middle, middle - half, middle + half


def best_setting(lines: Sequence[Json], seed: int = 0, draws: int = 8) -> str:
    """The one setting of the grid with the least mean log cost, over federations and random prices.

    Where fewer sites are there than it asks for, it is the same budget with all of them.

    Raises:
        FederationError: there is no experience.
    """
    random = np.random.default_rng(seed)
    names = sorted({setting_name(play) for line in lines for play in line["plays"]})
    if not names:
        raise FederationError("policy: no experience to choose a static setting from; run `llm-qfl policy train`")
    logs: dict[str, list[float]] = {name: [] for name in names}
    for line in lines:
        plays = {setting_name(play): play for play in line["plays"]}
        for _ in range(draws):
            prices, full = price_list(line, draw_shares(random)), float(line["case"]["rounds"])
            costs = {name: math.log(priced(play, prices, line["target"], full)) for name, play in plays.items()}
            for name in names:
                logs[name].append(_at_nearest(name, costs))
    return min(names, key=lambda name: float(np.mean(logs[name])))


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
        FederationError: no experience, or no held-out federation could be had.
    """
    one = best_setting(learned)
    path = folder / "held-out.jsonl"
    gather(path, range(HELD_OUT, HELD_OUT + federations), folder / "tables", until=until, say=say, branched=False)
    lines = [line for line in read_lines(path) if "refused" not in line][:federations]
    if not lines:
        raise FederationError("policy evaluate: no held-out federation was played; give it more --minutes")
    asked = Asked(Remembered(policy), ranges, [lesson.text for lesson in lessons(learned, 1)])
    found: dict[str, Judged] = {}
    for name, shares in PRICES.items():
        runs = [asked.run(line, price_list(line, shares), one) for line in lines]
        decisions = [decision for run in runs for decision in run.decisions]
        told = conduct("policy", decisions, 1.0)
        found[name] = Judged(
            len(lines),
            math.exp(float(np.mean([run.ratio for run in runs]))),
            math.exp(float(np.mean([run.static_one for run in runs]))),
            float(np.mean([run.reached for run in runs])),
            told.fallback_rate,
            told.information,
            told.milliseconds,
            tuple(run.shuffled for run in runs),
            tuple(run.ratio - run.static_one for run in runs),
        )
        say(f"{name}: policy {found[name].policy:.2f}, static-one ({one}) {found[name].static_one:.2f} of the best")
    return found


@dataclass(frozen=True)
class Run:
    """One federation at one price list; logs of cost ratios.

    Attributes:
        ratio: policy over the best setting.
        static_one: that setting over the best one.
        shuffled: policy with shuffled states over policy.
        reached: did the policy reach the target?
        decisions: the policy's.
    """

    ratio: float
    static_one: float
    shuffled: float
    reached: bool
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Asked:
    """Plays a policy.

    Attributes:
        policy: it; equal questions are asked once.
        ranges: the state's buckets that it knows.
        texts: states that it met elsewhere.
    """

    policy: Remembered
    ranges: Mapping[str, tuple[int, int]]
    texts: list[str]

    def run(self, line: Json, prices: Prices, one: str) -> Run:
        """A federation, with true states and with shuffled ones.

        Args:
            line: of the held-out experience.
            prices: of the run.
            one: name of the setting that is best on average.
        """
        first, full, world = First(**line["first"]), float(line["case"]["rounds"]), reopen(line)
        blind = Shuffled(self.policy, self.texts, np.random.default_rng([line["case"]["seed"], 5]))
        played, lost = (
            world.play(scored(who, prices, first=first, ranges=self.ranges), target=line["target"])
            for who in (self.policy, blind)
        )
        reached, without = (
            run.to_target(prices, line["target"], max(full, sum(run.costs(prices)))) for run in (played, lost)
        )
        costs = {setting_name(play): priced(play, prices, line["target"], full) for play in line["plays"]}
        least = min(costs.values())
        return Run(
            math.log(reached.cost / least),
            math.log(_at_nearest(one, costs) / least),
            math.log(without.cost / reached.cost),
            reached.server_round is not None,
            tuple(played.decisions),
        )


def _at_nearest(name: str, costs: Mapping[str, float]) -> float:
    """Cost of a setting; where it asks for more sites than are there, of the same budget with all of them.

    Raises:
        FederationError: that was not played either.
    """
    everyone = f"{name.split(maxsplit=1)[0]} clients=all"
    if name not in costs and everyone not in costs:
        raise FederationError(f"policy: expected a play of {name} or {everyone}, got {', '.join(costs)}")
    return costs[name if name in costs else everyone]
