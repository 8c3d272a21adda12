"""What the policy sees: a few small whole numbers, made from closed rounds.

No site's name, no text of a site's, no raw loss: every quantity is put into a bucket, and sites stand in one canonical
order, so that neither names nor the order of replies can say anything. 0 always means "not known".
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from agent.budgets import StepCost
from agent.history import History, slowness
from agent.prices import Prices
from agent.rules import ratio_of
from llm_qfl.federation.types import Array

SHOWN = 10  # sites; of more, the last line is the mean of the rest
SLOPES = 3  # rounds whose progress is shown

# Edges of the buckets; bucket 1 lies below the first. At most eight, so that a bucket is one digit.
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)
LOSS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05)  # as a share of ln C, what guessing costs
GAP = (0.005, 0.02, 0.05, 0.15)  # nats above the best
SLOPE = (-0.05, -0.01, 0.005, 0.02, 0.05, 0.1, 0.2)  # fall of the loss in a round, as a share of it
DISTANCE = (0.02, 0.05, 0.1, 0.2, 0.4)
RATIO = (0.5, 0.9, 1.1, 1.5, 2.0)
STEPS = (1.5, 2.5, 4.5, 7.5, 12.5, 25.0, 60.0)
SHARE = (0.02, 0.05, 0.1, 0.2, 0.4)
IDLE = (0.5, 1.5, 3.5, 7.5)
SLOW = (0.5, 0.8, 1.25, 2.0)
FAILED = (0.5, 1.5, 3.5)
EVEN = Prices(1.0, 1.0, 1.0)
COUNT = (1.5, 2.5, 3.5, 4.5, 6.5, 9.5, 12.5, 20.5)

HEADER = (
    *("sites", "round", "left", "loss", "gap", "fall1", "fall2", "fall3", "distance", "ratio", "asked", "steps"),
    *("circuits", "rounds", "bytes", "noise", "queue"),
)
# Prices come last, next to the questions: what a choice depends on most is read from where it is easiest to find.
WORDS = {
    **{name: (name,) for name in HEADER[:5]},
    "fall": HEADER[5:8],
    **{name: (name,) for name in (*HEADER[8:12], *HEADER[15:], *HEADER[12:15])},
}
CLIENT = ("share", "loss", "ratio", "distance", "steps", "idle", "slow", "failed")


def bucket(value: float | None, edges: Sequence[float]) -> int:
    """1 below the first edge, one more for every edge that the value reaches; 0 where it is not known."""
    return 0 if value is None or math.isnan(value) else 1 + bisect_right(edges, value)


@dataclass(frozen=True)
class Setting:
    """What of a run stays the same.

    Attributes:
        rounds: `server.rounds`.
        classes: C.
        cost: of an optimizer step.
        limit: evaluations of the run, 0 without a limit.
        prices: of the run.
        round_circuits, round_bytes: what a round of the fixed plan (mode `qfl`) costs, all sites together.
        noise: 1 exact, 2 shots, 3 a noisy device, 4 a QPU; 0 not known.
        queue_seconds: usual wait for a QPU, or None where there is none. No run fills it: a server does not know it
            beforehand, so the bucket says "none" on a QPU as well.
        lag: 1 where validation is of the vector that a round *sent* (federated), 0 where of its result.
    """

    rounds: int
    classes: int
    cost: StepCost
    limit: int = 0
    prices: Prices = EVEN
    round_circuits: int = 1
    round_bytes: int = 1
    noise: int = 1
    queue_seconds: float | None = None
    lag: int = 0

    @property
    def full_cost(self) -> float:
        """Priced cost of the whole fixed plan."""
        return self.rounds * self.prices.cost(self.round_circuits, 1, self.round_bytes)


@dataclass(frozen=True)
class State:
    """The buckets: one of every `HEADER` name, and a line of every `CLIENT` name for each site shown."""

    header: tuple[int, ...]
    clients: tuple[tuple[int, ...], ...]

    @classmethod
    def empty(cls) -> State:
        """Nothing is known, of as many sites as are shown."""
        return cls((0,) * len(HEADER), ((0,) * len(CLIENT),) * SHOWN)

    def text(self) -> str:
        """The state as the language model reads it: words of ours and digits, one line for sites, one for the run."""
        digits = dict(zip(HEADER, map(str, self.header), strict=True))
        run = " ".join(f"{word} {''.join(digits[name] for name in names)}" for word, names in WORDS.items())
        return f"{' '.join(''.join(map(str, line)) for line in self.clients)}\n{run}"

    def digest(self) -> str:
        """Equal for equal states."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]

    def features(self) -> Array:
        """The state as a vector (17 + 3 x 8,): the run's buckets; mean, least and most of the sites'."""
        lines = np.array(self.clients or [[0] * len(CLIENT)], np.float64)
        return np.concatenate([np.array(self.header, np.float64), lines.mean(0), lines.min(0), lines.max(0)])

    def outside(self, ranges: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
        """Which of the run's buckets lie outside what the policy was trained on.

        Args:
            ranges: name -> smallest and largest bucket in training; a name that is missing is not looked at.
        """
        seen = zip(HEADER, self.header, strict=True)
        return tuple(
            f"{name} {value} outside {low}..{high}"
            for name, value in seen
            for low, high in [ranges.get(name, (value, value))]
            if not low <= value <= high
        )


def noise_level(backends: Iterable[str]) -> int:
    """The noisiest of these backends: 1 exact, 2 shots, 3 a noisy device, 4 a QPU; 0 where there is none."""
    return max((_noise(backend) for backend in backends), default=0)


def _noise(backend: str) -> int:
    if backend == "exact":
        return 1
    if backend == "aer":
        return 2
    return 4 if backend.startswith("ibm:") else 3


def ranges_of(states: Iterable[State]) -> dict[str, tuple[int, int]]:
    """Smallest and largest bucket of the run's numbers over these states, for `State.outside`."""
    columns = list(zip(*(state.header for state in states), strict=True))
    return {name: (min(column), max(column)) for name, column in zip(HEADER, columns, strict=False)}


def state_of(
    history: History,
    setting: Setting,
    budgets: Mapping[str, int],
    sites: Sequence[str],
    next_round: int,
    *,
    waiting: int = 0,
) -> State:
    """The state before a round.

    Args:
        history: closed rounds.
        setting: what stays the same.
        budgets: evaluations by site, as they stand.
        sites: sites that are there and free, in any order.
        next_round: the round to decide.
        waiting: evaluations of tasks without an answer.
    """
    lines = sorted(_lines(history, setting, budgets, sites, next_round), reverse=True)
    if len(lines) > SHOWN:
        rest = np.array(lines[SHOWN - 1 :], np.float64).mean(axis=0)
        lines = [*lines[: SHOWN - 1], tuple(int(value + 0.5) for value in rest)]
    left = 1.0 if not setting.limit else max(1 - (history.evaluations + waiting) / setting.limit, 0.0)
    return State(_header(history, setting, budgets, sites, next_round, left), tuple(lines))


def _header(
    history: History,
    setting: Setting,
    budgets: Mapping[str, int],
    sites: Sequence[str],
    next_round: int,
    left: float,
) -> tuple[int, ...]:
    losses, guess = history.losses(), math.log(setting.classes)
    last = history.rounds[-1] if history.rounds else None
    falls = [(before - after) / max(before, 1e-9) for before, after in pairwise(losses)]
    shown: list[float | None] = [*falls[: -SLOPES - 1 : -1], None, None, None]
    teacher = None if last is None else last.teacher_loss
    distance = None if last is None else last.mean_distance
    steps = [setting.cost.steps(budgets[site]) for site in sites if site in budgets]
    return (
        bucket(len(sites), COUNT),
        bucket((next_round - 1) / setting.rounds, TENTHS),
        bucket(left, TENTHS),
        bucket(losses[-1] / guess if losses else None, LOSS),
        bucket(losses[-1] - min(losses) if losses else None, GAP),
        *(bucket(fall, SLOPE) for fall in shown[:SLOPES]),
        bucket(distance, DISTANCE),
        bucket(ratio_of(losses[-1], teacher) if losses and teacher is not None else None, RATIO),
        bucket(len(last.asked) if last is not None else None, COUNT),
        bucket(median(steps) if steps else None, STEPS),
        *(bucket(share, TENTHS) for share in setting.prices.shares(setting.round_circuits, setting.round_bytes)),
        setting.noise,
        bucket(setting.queue_seconds, (1.0, 60.0, 600.0)),
    )


def _lines(
    history: History, setting: Setting, budgets: Mapping[str, int], sites: Sequence[str], next_round: int
) -> list[tuple[int, ...]]:
    """The buckets of every site, in no order yet; equal lines are equal to the policy, whoever they belong to."""
    known, asked, failed = history.known(), history.last_asked(), _failures(history)
    total = sum(one.record.examples for one in known.values())
    slow = slowness(known)
    guess = math.log(setting.classes)
    lines: list[tuple[int, ...]] = []
    for site in sites:
        one = known.get(site)
        steps = bucket(setting.cost.steps(budgets[site]) if site in budgets else None, STEPS)
        idle = bucket(next_round - 1 - asked[site] if site in asked else None, IDLE)
        lost = bucket(failed.get(site, 0), FAILED)
        if one is None:
            lines.append((0, 0, 0, 0, steps, idle, 0, lost))
            continue
        own, teacher = one.record.qnn_loss, one.record.language_loss
        lines.append(
            (
                bucket(one.record.examples / total if total else None, SHARE),
                bucket(own / guess, LOSS),
                bucket(None if teacher is None else ratio_of(own, teacher), RATIO),
                bucket(one.distance, DISTANCE),
                steps,
                idle,
                bucket(slow[site], SLOW),
                lost,
            )
        )
    return lines


def _failures(history: History) -> dict[str, int]:
    """How often a site was asked and gave no answer that counted."""
    found: dict[str, int] = {}
    for record in history.rounds:
        for site in set(record.asked) - {one.site for one in record.sites}:
            found[site] = found.get(site, 0) + 1
    return found
