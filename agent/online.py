"""An online bandit on top of the policy, whose model stays frozen: what this run's own rewards say of the options.

A gradient bandit with a baseline (Sutton and Barto, Reinforcement Learning, 2nd edition, 2.8), field by field:

    pi'(o|s) ~ pi(o|s) exp(h_o)        h_o += rate (r - mean) / sd (1[o was chosen] - pi'(o|s))

with mean and standard deviation (.001 at least: at a plateau they are rounding) of the last rewards, since a round wins
less the later it comes, and the quotient within 2 of 0. Where the best option is taken, not a draw (`agent.choice`), it
is a rule of thumb and no gradient. Nothing is added for an option that the shield forbids, and `stop` is left alone: a
run that ended earns nothing to learn from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agent.actions import SIZES, Action
from agent.choice import Probabilities

WINDOW = 5
"""Rewards that one is compared with."""
LIMIT = 2.0
"""Largest preference, up or down, nats: the odds of two options change by a factor of e^4 at most."""
SURPRISE = 2.0
"""Most standard deviations that a reward counts as."""
FLOOR = 1e-3
"""Least standard deviation of rewards; they are shares of the run's first loss."""
LEARNED = tuple(name for name in SIZES if name != "stop")


@dataclass(frozen=True)
class Asked:
    """A decision of the policy whose reward is not known yet: option numbers, and the probabilities they came from."""

    options: Mapping[str, int]
    probabilities: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Online:
    """What one run has taught the bandit; every change is a new one.

    Attributes:
        rate: of the preferences; 0 leaves the policy as it is.
        preferences: h, field by field, nats.
        rewards: of the policy's last decisions, at most `WINDOW`, the newest last.
        asked: round -> decision without a reward.
    """

    rate: float = 0.0
    preferences: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rewards: tuple[float, ...] = ()
    asked: Mapping[int, Asked] = field(default_factory=dict)

    def tilted(self, probabilities: Probabilities) -> Probabilities:
        """The policy's probabilities with the preferences; options without weight keep none."""
        if not self.preferences:
            return probabilities
        found = dict(probabilities)
        for name, preference in self.preferences.items():
            raised = probabilities[name] * np.exp(np.array(preference))
            found[name] = raised / raised.sum()
        return found

    def chose(self, server_round: int, action: Action, probabilities: Probabilities) -> Online:
        """After the policy decided a round; `probabilities` are pi'."""
        if not self.rate:
            return self
        kept = {name: tuple(float(value) for value in probabilities[name]) for name in LEARNED}
        return replace(self, asked={**self.asked, server_round: Asked(action.options(), kept)})

    def earned(self, server_round: int, reward: float) -> Online:
        """After a round's reward is known; one that the rule decided teaches nothing."""
        asked = dict(self.asked)
        decision = asked.pop(server_round, None)
        if decision is None:
            return self
        before = self.rewards
        later = replace(self, asked=asked, rewards=(*before, reward)[-WINDOW:])
        if len(before) < 2:
            return later
        spread = max(float(np.std(before)), FLOOR)
        advantage = float(np.clip((reward - float(np.mean(before))) / spread, -SURPRISE, SURPRISE))
        return replace(later, preferences={name: self._moved(name, decision, advantage) for name in LEARNED})

    def _moved(self, name: str, decision: Asked, advantage: float) -> tuple[float, ...]:
        probabilities = np.array(decision.probabilities[name])
        chosen = np.zeros(len(probabilities))
        chosen[decision.options[name]] = 1.0
        before = np.array(self.preferences.get(name, (0.0,) * len(probabilities)))
        after = np.clip(before + self.rate * advantage * (chosen - probabilities), -LIMIT, LIMIT)
        return tuple(float(value) for value in after)

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats come back exactly."""
        return {
            "rate": self.rate,
            "preferences": {name: list(values) for name, values in self.preferences.items()},
            "rewards": list(self.rewards),
            "asked": {
                str(number): {
                    "options": dict(one.options),
                    "probabilities": {name: list(values) for name, values in one.probabilities.items()},
                }
                for number, one in self.asked.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Online:
        """Read `to_json`'s form.

        Raises:
            KeyError, TypeError, ValueError: it is of another form.
        """
        asked = {
            int(number): Asked(
                {str(name): int(option) for name, option in one["options"].items()}, _tuples(one["probabilities"])
            )
            for number, one in data["asked"].items()
        }
        rewards = tuple(float(reward) for reward in data["rewards"])
        return cls(float(data["rate"]), _tuples(data["preferences"]), rewards, asked)


def _tuples(data: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    return {str(name): tuple(float(value) for value in values) for name, values in data.items()}
