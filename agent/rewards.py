"""The policy's reward: validation loss won, at what the rounds cost.

    r_t = (V_{t-1} - V_t) / V_0 - w cost_t / cost_ref - v [the shield had to edit]
    at the end: - V_T / V_0

V is the server's validation cross-entropy, never the test's; cost is priced. Reference: llm-qfl 5.2(7), whose costs in
evaluations and seconds, and whose bonus for a budget that is left, are replaced by the priced cost: what is left over
was not paid. The last V is divided by V_0, so that tasks weigh alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from llm_qfl.federation.errors import FederationError


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the reward's terms.

    Attributes:
        cost: w, of a round's cost as a share of the reference run's whole cost.
        violation: v, of a choice that the shield had to edit; ours: with 1 an edit would weigh as much as all of V_0.
            A run also charges edits of what the rule planned, `Played.rewarded` those of the policy alone.
    """

    cost: float = 1.0
    violation: float = 0.05


@dataclass(frozen=True)
class Rewarded:
    """A run's rewards.

    Attributes:
        steps: r_t of every round.
        terminal: what its end adds.
    """

    steps: tuple[float, ...]
    terminal: float

    @property
    def total(self) -> float:
        """The undiscounted return."""
        return sum(self.steps) + self.terminal


DEFAULT = RewardWeights()


def step_reward(rise: float, first: float, cost_share: float, weights: RewardWeights, *, violated: bool) -> float:
    """r_t of one round.

    Args:
        rise: V_t - V_{t-1}, nats.
        first: V_0.
        cost_share: the round's priced cost as a share of the reference run's.
        weights: of the terms.
        violated: did the shield edit the choice?
    """
    return -rise / first - weights.cost * cost_share - weights.violation * violated


def rewards(
    losses: Sequence[float],
    costs: Sequence[float],
    violations: Sequence[bool],
    *,
    cost_reference: float,
    weights: RewardWeights = DEFAULT,
) -> Rewarded:
    """Rewards of a run.

    Args:
        losses: V_0, of the model before the first round, then V after each round; nats.
        costs: priced cost of each round.
        violations: did the shield edit the choice of each round?
        cost_reference: priced cost of the whole reference run (the fixed plan's).
        weights: of the terms.

    Raises:
        FederationError: lengths that do not match, or a reference that is not above 0.
    """
    if not (len(losses) - 1 == len(costs) == len(violations) and len(losses)):
        raise FederationError(
            f"rewards: {len(losses)} losses need {len(losses) - 1} costs and violations, got {len(costs)} and "
            f"{len(violations)}"
        )
    if not (cost_reference > 0 and losses[0] > 0):
        raise FederationError(
            f"rewards: expected references above 0, got cost {cost_reference}, first loss {losses[0]}"
        )
    steps = tuple(
        step_reward(after - before, losses[0], cost / cost_reference, weights, violated=violated)
        for (before, after), cost, violated in zip(pairwise(losses), costs, violations, strict=True)
    )
    return Rewarded(steps, -losses[-1] / losses[0])
