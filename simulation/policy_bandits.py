"""Learners without a language model in the policy's place: LinUCB on the state's buckets, TPE without any."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from agent.actions import FIELDS, Budget, Clients, Lambda, Select
from agent.choice import Probabilities
from agent.decisions import Decision
from agent.shield import Mask
from llm_qfl.federation.types import Array
from simulation.policy_arms import COUNTS, DEFAULT, STEPS, one_hot
from simulation.policy_states import read_state

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial


@dataclass(eq=False)
class LinUCB:
    """Disjoint LinUCB (Li et al. 2010, algorithm 1) over budgets x numbers of sites; features are the state's buckets.

    Attributes:
        alpha: width of the confidence bound.
    """

    alpha: float = 0.5
    inverse: dict[int, Array] = field(default_factory=dict)
    response: dict[int, Array] = field(default_factory=dict)
    seen: dict[int, Array] = field(default_factory=dict)

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer."""
        x = self._features(text)
        bounds = [self._bound(arm, x) for arm in range(len(STEPS) * len(COUNTS))]
        for arm in range(len(bounds)):
            budget, clients = self._options(arm)
            fits = allowed["budget"][list(Budget).index(budget)] and allowed["clients"][list(Clients).index(clients)]
            bounds[arm] = bounds[arm] if fits else -math.inf
        budget, clients = self._options(int(np.argmax(bounds)))
        return one_hot({**DEFAULT, "budget": budget, "clients": clients}, allowed)

    def learn(self, decision: Decision, reward: float) -> None:
        """Sherman-Morrison update of the arm that was taken."""
        if decision.action is None or decision.state is None:
            return
        if decision.action.budget not in STEPS or decision.action.clients not in COUNTS:
            return
        arm = STEPS.index(decision.action.budget) * len(COUNTS) + COUNTS.index(decision.action.clients)
        x = self._features(decision.state.text())
        inverse = self.inverse.setdefault(arm, np.eye(len(x)))
        moved = inverse @ x
        self.inverse[arm] = inverse - np.outer(moved, moved) / (1 + x @ moved)
        self.response[arm] = self.response.get(arm, np.zeros(len(x))) + reward * x

    def _bound(self, arm: int, x: Array) -> float:
        inverse = self.inverse.get(arm)
        if inverse is None:
            return float(self.alpha * np.sqrt(x @ x))
        return float(x @ inverse @ self.response[arm] + self.alpha * np.sqrt(x @ inverse @ x))

    @staticmethod
    def _features(text: str) -> Array:
        values = read_state(text).features() / 9.0
        return np.concatenate([[1.0], values])

    @staticmethod
    def _options(arm: int) -> tuple[Budget, Clients]:
        return STEPS[arm // len(COUNTS)], COUNTS[arm % len(COUNTS)]


class TPE:
    """Optuna's TPE, a round being a trial: no state, `DEFAULT` first, the round's reward as its value.

    Where an option is masked the nearest allowed one is taken, and the study is told the reward of what it asked for.

    Args:
        seed: of the sampler.
    """

    def __init__(self, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=3)
        self._study: Study = optuna.create_study(direction="maximize", sampler=sampler)
        self._study.enqueue_trial({name: DEFAULT[name].value for name in ("budget", "clients", "select", "weight")})
        self._open: dict[str, Trial] = {}
        self._last: Trial | None = None

    def probabilities(self, text: str, allowed: Mask) -> Probabilities:
        """See Scorer."""
        trial = self._study.ask()
        names = {
            "budget": [budget.value for budget in STEPS],
            "clients": [count.value for count in COUNTS],
            "select": [select.value for select in Select],
            "weight": [weight.value for weight in Lambda],
        }
        chosen = {name: FIELDS[name](str(trial.suggest_categorical(name, values))) for name, values in names.items()}
        self._last = trial
        return one_hot({**DEFAULT, **chosen}, allowed)

    def learn(self, decision: Decision, reward: float) -> None:
        """The value of the round's trial; rewards come before the next question."""
        if self._last is not None and decision.action is not None:
            self._study.tell(self._last, reward)
            self._last = None
