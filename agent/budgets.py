"""Local budgets: what a step costs, what a run has left. The unit is the objective evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llm_qfl.federation.errors import ConfigError


@dataclass(frozen=True)
class StepCost:
    """What optimizer steps cost: `steps * per_step + extra` evaluations, never fewer than `least`.

    Adam pays 2G+1 a step and one more for the last point, SPSA 2 and two more, COBYLA 1 but P+2 at least.
    """

    per_step: int
    extra: int
    least: int

    @classmethod
    def of(cls, optimizer: str, gradient_cost: int, parameters: int) -> StepCost:
        """The cost of a configured optimizer.

        Args:
            optimizer: as in `training.optimizer`.
            gradient_cost: evaluations of one gradient, 2G+1.
            parameters: P.

        Raises:
            ConfigError: no such optimizer.
        """
        if optimizer == "adam":
            return cls(gradient_cost, 1, gradient_cost + 1)
        if optimizer == "spsa":
            return cls(2, 2, 4)
        if optimizer == "cobyla":
            return cls(1, 0, parameters + 2)
        raise ConfigError(f"training.optimizer: expected adam, spsa or cobyla, got {optimizer!r}")

    def evaluations(self, steps: int) -> int:
        """What so many steps cost."""
        return max(steps * self.per_step + self.extra, self.least)

    def steps(self, evaluations: int) -> int:
        """Whole steps that so many evaluations pay for."""
        return max((evaluations - self.extra) // self.per_step, 0)

    def spent(self, evaluations: int) -> int:
        """What is spent of a budget: whole steps."""
        return self.evaluations(self.steps(evaluations))


def remaining(limit: int, spent: int) -> int | None:
    """Evaluations that a run has left; None where it has no limit (0)."""
    return None if limit == 0 else max(limit - spent, 0)


def fit(budgets: Mapping[str, int], left: int | None, cost: StepCost) -> dict[str, int] | None:
    """Cut a round's budgets to what the run has left, all by the same factor, none below one step.

    Args:
        budgets: evaluations by site.
        left: evaluations that the run has left, or None.
        cost: of a step.

    Returns:
        Budgets whose spending (whole steps) is within `left`; None where not even one step each is.
    """
    spending = {site: cost.spent(budget) for site, budget in budgets.items()}
    total = sum(spending.values())
    if left is None or total <= left:
        return dict(budgets)
    if cost.least * len(budgets) > left:
        return None
    cut = {site: cost.spent(max(int(one * left / total), cost.least)) for site, one in spending.items()}
    while sum(cut.values()) > left:  # the floor of one step took more than the factor gave: the largest pay for it
        site = max(cut, key=lambda name: (cut[name], name))
        cut[site] = cost.evaluations(cost.steps(cut[site]) - 1)
    return cut
