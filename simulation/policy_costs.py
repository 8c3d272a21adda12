"""What a round of a setting comes to in the end, learned over federations: who was lucky in one of them averages out.

A regression of what plays came to on states and settings, with extremely randomised trees as in Ernst, Geurts and
Wehenkel (JMLR 2005), but of whole plays: nothing is bootstrapped. The policy is cloned from what the trees say; as a
scorer they are the mark that it is held to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from agent.actions import FIELDS, SIZES, Budget, Clients
from agent.choice import Probabilities
from agent.shield import Mask
from agent.state import HEADER, State
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import Array
from simulation.lines import Json
from simulation.policy_arms import COUNTS, DEFAULT, STEPS
from simulation.policy_lessons import Lesson, lessons
from simulation.policy_states import read_state

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

SEEN = ("sites", "round", "loss", "gap", "fall1", "fall2", "asked", "steps", "circuits", "rounds", "bytes")
"""What of the state the trees are shown: with every site's buckets they did worse on federations held out."""
TREES = 100
LEAF = 20
"""Plays, at each price list, that a leaf averages over at least: of fewer it is the luck of a few federations."""
LISTS = 8
"""Price lists of a federation that the trees are shown."""
FOLDS = 5
ONE_IN = 10
"""Of so many federations one is not cloned."""
FALL, UNKNOWN = HEADER.index("fall1"), 0  # no loss has fallen yet: the first question
Setting = Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Costs:
    """Log cost of a setting in a state, up to a constant of the state.

    Attributes:
        trees: fitted on `features`.
    """

    trees: ExtraTreesRegressor

    @classmethod
    def fit(cls, found: Sequence[Lesson], seed: int, *, lists: int = 1) -> Costs:
        """Fit to lessons of many federations.

        Args:
            found: the lessons.
            seed: of the trees.
            lists: price lists at which each play is among them.

        Raises:
            FederationError: no lesson.
        """
        from sklearn.ensemble import ExtraTreesRegressor

        if not found:
            raise FederationError("policy: no state to learn costs from; run `llm-qfl policy train`")
        rows = [features(read_state(one.text), one.settings, one.once) for one in found]
        costs = [np.array(one.regrets) - np.mean(one.regrets) for one in found]
        trees = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF * lists, max_features=0.5, random_state=seed)
        return cls(trees.fit(np.concatenate(rows), np.concatenate(costs)))

    def predict(self, state: State, settings: Sequence[Setting]) -> Array:
        """(settings,), nats; of the first question at the cheaper way to go on, since only there both were tried."""
        ways = [False, True] if state.header[FALL] == UNKNOWN else [False]
        each = [self.trees.predict(features(state, settings, [once] * len(settings))) for once in ways]
        return np.asarray(np.min(each, axis=0), np.float64)

    def of_grid(self, text: str, allowed: Mask) -> tuple[tuple[Setting, ...], Array]:
        """All settings of the grid that are allowed in a state, and what `predict` says of them.

        Raises:
            FederationError: none of them is allowed.
        """
        state = read_state(text)
        settings = grid_options(len(state.clients))
        able = tuple(one for one in settings if all(allowed[name][number] for name, number in one.items()))
        if not able:
            raise FederationError(f"policy: none of {len(settings)} settings is allowed in {text!r}")
        return able, self.predict(state, able)

    def teach(self, lesson: Lesson) -> Lesson:
        """The lesson with what the trees say of the whole grid, in place of one play each; raises as `of_grid`."""
        able, costs = self.of_grid(lesson.text, lesson.allowed)
        regrets = tuple(float(one) for one in costs - costs.min())
        return replace(lesson, settings=able, regrets=regrets, once=(False,) * len(able))

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer: all weight on the setting that the trees expect to cost least; raises as `of_grid`."""
        able, costs = self.of_grid(text, allowed)
        return {name: np.eye(SIZES[name])[number] for name, number in able[int(costs.argmin())].items()}


def held_back(number: int) -> bool:
    """Is a federation one that nothing is cloned from?"""
    return number % ONE_IN == ONE_IN - 1


def costs_of(lines: Sequence[Json], seed: int) -> Costs:
    """What experience says of every setting, without the federations that are held back."""
    mine = [line for line in lines if not held_back(line["number"])]
    return Costs.fit(lessons(mine, seed, prices=LISTS), seed, lists=LISTS)


def taught(lines: Sequence[Json], found: Sequence[Lesson], seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons as the trees tell them; of every federation trees that never saw it, or they would repeat its luck.

    Args:
        lines: experience.
        found: lessons of it.
        seed: of the trees.

    Returns:
        Those to be cloned, and those of the federations that are held back.
    """
    cloned: list[Lesson] = []
    for fold in range(FOLDS):
        costs = costs_of([line for line in lines if line["number"] % FOLDS != fold], seed)
        cloned += [costs.teach(one) for one in found if one.number % FOLDS == fold and not held_back(one.number)]
    costs = costs_of(lines, seed)
    return cloned, [costs.teach(one) for one in found if held_back(one.number)]


def grid_options(sites: int) -> list[Setting]:
    """Numbers of the options of every setting of the grid, a number of sites that are not there left out."""
    counts = [count for count in COUNTS if count is Clients.ALL or count.count(sites) < sites]
    grid = [{**DEFAULT, "budget": budget, "clients": count} for budget in STEPS for count in counts]
    return [{name: list(kind).index(one[name]) for name, kind in FIELDS.items()} for one in grid]


def features(state: State, settings: Sequence[Setting], once: Sequence[bool]) -> Array:
    """Rows of numbers for each setting in a state, played for a round or to the end: (settings, features).

    Of more than `agent.state.SHOWN` sites the state shows so many, and so many they are here.

    Raises:
        FederationError: a budget that is a scale and no number of steps.
    """
    seen = dict(zip(HEADER, state.header, strict=True))
    there = [*(seen[name] for name in SEEN), float(seen["fall1"] == UNKNOWN)]
    tried = zip(settings, once, strict=True)
    return np.array([[*there, *_features(one, len(state.clients)), float(flag)] for one, flag in tried], np.float64)


def _features(setting: Setting, sites: int) -> list[float]:
    budget = _BUDGETS[setting["budget"]]
    if (steps := budget.steps) is None:
        raise FederationError(f"policy: expected a budget in steps, got {budget.value}")
    count = min(_CLIENTS[setting["clients"]].count(sites), sites)
    return [math.log(steps), math.log(count), count / sites, math.log(steps * count / sites)]


_BUDGETS, _CLIENTS = list(Budget), list(Clients)
