"""What a round of a setting comes to in the end, learned over federations: who was lucky in one of them averages out.

One batch of fitted Q iteration with extremely randomised trees (Ernst, Geurts and Wehenkel, JMLR 2005). The policy is
cloned from what the trees say; as a scorer they are the mark that it is held to.
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
from simulation.policy_arms import COUNTS, DEFAULT, STEPS
from simulation.policy_lessons import Lesson
from simulation.policy_states import read_state

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

SEEN = ("sites", "round", "loss", "gap", "fall1", "fall2", "asked", "steps", "circuits", "rounds", "bytes")
"""What of the state the trees are shown: with every site's buckets they did worse on federations held out."""
TREES = 100
LEAF = 40
"""States, at least, whose plays a leaf averages over; in smaller ones it is the luck of a few federations."""
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
    def fit(cls, found: Sequence[Lesson], seed: int) -> Costs:
        """Fit to lessons of many federations.

        Raises:
            FederationError: no lesson.
        """
        from sklearn.ensemble import ExtraTreesRegressor

        if not found:
            raise FederationError("policy: no state to learn costs from; run `llm-qfl policy train`")
        rows = [features(read_state(one.text), one.settings, one.once) for one in found]
        costs = [np.array(one.regrets) - np.mean(one.regrets) for one in found]
        leaf = LEAF * max(round(float(np.mean([len(one) for one in costs])) / 4), 1)
        trees = ExtraTreesRegressor(TREES, min_samples_leaf=leaf, max_features=0.5, random_state=seed)
        return cls(trees.fit(np.concatenate(rows), np.concatenate(costs)))

    def predict(self, state: State, settings: Sequence[Setting]) -> Array:
        """(settings,), nats; of the first question at the cheaper way to go on, since only there both were tried."""
        ways = [False, True] if state.header[FALL] == UNKNOWN else [False]
        each = [self.trees.predict(features(state, settings, [once] * len(settings))) for once in ways]
        return np.asarray(np.min(each, axis=0), np.float64)

    def teach(self, lesson: Lesson) -> Lesson:
        """The lesson with what the trees say of all settings of the grid, where allowed, in place of one play each.

        Raises:
            FederationError: none of them is allowed.
        """
        settings = grid_options()
        able = tuple(one for one in settings if all(lesson.allowed[name][number] for name, number in one.items()))
        if not able:
            raise FederationError(f"policy: none of {len(settings)} settings is allowed in {lesson.text!r}")
        costs = self.predict(read_state(lesson.text), able)
        regrets = tuple(float(one) for one in costs - costs.min())
        return replace(lesson, settings=able, regrets=regrets, once=(False,) * len(able))

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer: all weight on the setting of the grid that the trees expect to cost least.

        Raises:
            FederationError: none of the grid is allowed.
        """
        lesson = Lesson(text, allowed, (), (), 0, ())
        taught = self.teach(lesson)
        best = taught.settings[int(np.argmin(taught.regrets))]
        return {name: np.eye(SIZES[name])[number] for name, number in best.items()}


def grid_options() -> list[Setting]:
    """Numbers of the options of every setting of the grid."""
    grid = [{**DEFAULT, "budget": budget, "clients": count} for budget in STEPS for count in COUNTS]
    return [{name: list(kind).index(one[name]) for name, kind in FIELDS.items()} for one in grid]


def features(state: State, settings: Sequence[Setting], once: Sequence[bool]) -> Array:
    """Rows of numbers for each setting in a state, played for a round or to the end: (settings, features)."""
    seen = dict(zip(HEADER, state.header, strict=True))
    there = [*(seen[name] for name in SEEN), float(seen["fall1"] == UNKNOWN)]
    tried = zip(settings, once, strict=True)
    return np.array([[*there, *_features(one, len(state.clients)), float(flag)] for one, flag in tried], np.float64)


def _features(setting: Setting, sites: int) -> list[float]:
    steps = _BUDGETS[setting["budget"]].steps or 1
    count = min(_CLIENTS[setting["clients"]].count(sites), sites)
    return [math.log(steps), math.log(count), count / sites, math.log(steps * count / sites)]


_BUDGETS, _CLIENTS = list(Budget), list(Clients)
