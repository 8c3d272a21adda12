"""What is cloned: states with what settings cost from there on, and the same with luck taken out of the costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.actions import FIELDS, Shots
from agent.prices import Prices
from agent.shield import allowed_of
from simulation.lines import Json
from simulation.policy_arms import DEFAULT
from simulation.policy_branches import situations
from simulation.policy_experience import draw_shares, priced
from simulation.policy_states import elsewhere, prices_of, read_state, repriced, samples


@dataclass(frozen=True)
class Lesson:
    """A state with what settings cost in its federation, as they were played or as trees tell it.

    Attributes:
        text: the state.
        allowed: the mask.
        settings: field -> number of the option, of each setting that was tried and is allowed here.
        regrets: of each setting, log(cost / least cost), nats.
        number: the federation.
        once: of each setting, was it played for one round, with `policy_branches.BASE` after it, and not to the end?
            Of what trees tell never: there it is the cheaper of the two.
    """

    text: str
    allowed: Mapping[str, tuple[bool, ...]]
    settings: tuple[Mapping[str, int], ...]
    regrets: tuple[float, ...]
    number: int
    once: tuple[bool, ...]


def lessons(lines: Sequence[Json], seed: int, *, prices: int = 4, states: int = 5) -> list[Lesson]:
    """States at random prices, with what every setting cost to the target in their federation.

    Args:
        lines: of `gather`.
        seed: of prices and of the states that are taken.
        prices: price lists a federation.
        states: of each price list.
    """
    random = np.random.default_rng(seed)
    found: list[Lesson] = []
    for line in lines:
        if "refused" in line:
            continue
        for _ in range(prices):
            found += _priced_lessons(line, draw_shares(random), random, states)
    return found


def _priced_lessons(
    line: Json, shares: tuple[float, float, float], random: np.random.Generator, states: int
) -> list[Lesson]:
    prices = prices_of(shares, line["fixed"]["circuits"], line["fixed"]["bytes"])
    full, there = float(line["case"]["rounds"]), list(situations(line))
    found = []
    for number in random.permutation(len(there))[:states]:
        text, masked, plays = there[int(number)]
        state = elsewhere(repriced(read_state(text), _shares(line, prices)), random)
        allowed = allowed_of(masked) | ({"shots": (True,) * len(Shots)} if samples(state) else {})
        tried = [(_options(play), priced(play, prices, line["target"], full), play["once"]) for play in plays]
        fits = [one for one in tried if all(allowed[name][n] for name, n in one[0].items())]
        if fits:
            least = min(cost for _, cost, _ in fits)
            regrets = tuple(math.log(cost / least) for _, cost, _ in fits)
            settings, once = tuple(options for options, _, _ in fits), tuple(one for _, _, one in fits)
            found.append(Lesson(state.text(), allowed, settings, regrets, line["number"], once))
    return found


def _options(play: Json) -> dict[str, int]:
    """A play's setting as numbers of options; what it does not name was as by default."""
    named = {name: option.value for name, option in DEFAULT.items()} | play["options"]
    return {name: list(kind).index(kind(named[name])) for name, kind in FIELDS.items()}


def _shares(line: Json, prices: Prices) -> tuple[float, float, float]:
    """The shares that the run would show: of the configured plan's round, not of the tuned one's."""
    return prices.shares(line["plan"]["circuits"], line["plan"]["bytes"])
