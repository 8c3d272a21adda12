"""The policy's reward: validation loss won, at what the rounds cost.

    r_t = (V_{t-1} - V_t) / V_0 - w cost_t / cost_ref - v [the shield had to edit]
    at the end: - V_T / V_0 + u (share of the budget left, where V_T <= V_ref + delta)

V is the server's validation cross-entropy, never the test's; cost is priced. Reference: llm-qfl 5.2(7), whose costs in
evaluations and seconds are replaced by the priced one; the last V is divided by V_0, so that tasks weigh alike.
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
        violation: v, of a choice that the shield had to edit.
        unused: u, of the budget that is left at the end.
        tolerance: delta, nats.
    """

    cost: float = 1.0
    violation: float = 0.05
    unused: float = 0.1
    tolerance: float = 0.02


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

    def returns(self) -> tuple[float, ...]:
        """What still came, from each round on."""
        found, after = [], self.terminal
        for reward in reversed(self.steps):
            after += reward
            found.append(after)
        return tuple(reversed(found))


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
    loss_reference: float | None = None,
    unused: float = 0.0,
) -> Rewarded:
    """Rewards of a run.

    Args:
        losses: V_0, of the model before the first round, then V after each round; nats.
        costs: priced cost of each round.
        violations: did the shield edit the choice of each round?
        cost_reference: priced cost of the whole reference run (the fixed plan's).
        weights: of the terms.
        loss_reference: V_ref, the fixed plan's last V; without it the unused budget earns nothing.
        unused: share of the evaluation budget that is left.

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
    good = loss_reference is not None and losses[-1] <= loss_reference + weights.tolerance
    return Rewarded(steps, -losses[-1] / losses[0] + (weights.unused * unused if good else 0.0))


def advantages(returns: Sequence[float], baseline: Sequence[float]) -> tuple[float, ...]:
    """Returns minus those of the rule replayed on the same seed; a round that the baseline did not play counts 0."""
    padded = [*baseline, *([0.0] * len(returns))]
    return tuple(mine - theirs for mine, theirs in zip(returns, padded, strict=False))
