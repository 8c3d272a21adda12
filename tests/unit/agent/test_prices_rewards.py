import pytest

from agent.history import RoundRecord
from agent.prices import Prices, cost_to_target
from agent.rewards import RewardWeights, rewards
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.errors import FederationError

PRICES = Prices(circuit=0.01, round=5.0, byte=0.001)


def test_a_round_by_hand():
    record = RoundRecord(1, (), circuits=700, bytes=2000)
    assert PRICES.of_round(record) == pytest.approx(7 + 5 + 2)
    assert PRICES.shares(700, 2000) == pytest.approx((7 / 14, 5 / 14, 2 / 14))
    assert Prices(0, 0, 0).shares(700, 2000) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert Prices.of(AgentConfig(price_circuit=2.0)) == Prices(2.0, 1.0, 1e-6)


@pytest.mark.parametrize(
    ("accuracies", "cost", "server_round"),
    [
        ([0.5, 0.9, 0.91, 0.6], 3, 3),  # held in rounds 2 and 3
        ([0.9, 0.5, 0.9, 0.9], 4, 4),  # once is not held
        ([0.9, 0.5, 0.9, 0.5], 100, None),  # a run that never gets there counts its full budget
        ([0.9, None, 0.9, 0.9], 4, 4),
        ([], 100, None),
    ],
)
def test_cost_to_a_target_that_must_hold(accuracies, cost, server_round):
    found = cost_to_target(accuracies, [1.0] * len(accuracies), 0.9, full=100)
    assert (found.cost, found.server_round) == (cost, server_round)


def test_without_a_full_budget_a_miss_counts_what_it_spent():
    assert cost_to_target([0.1, 0.2], [1.0, 2.0], 0.9).cost == 3.0


def test_b23_a_run_is_rewarded_by_hand():
    weights = RewardWeights(cost=2.0, violation=0.5)
    run = rewards([0.8, 0.6, 0.4], [10, 20], [False, True], cost_reference=100, weights=weights)
    assert run.steps == pytest.approx((0.25 - 0.2, 0.25 - 0.4 - 0.5))
    assert run.terminal == pytest.approx(-0.5)
    assert run.total == pytest.approx(0.05 - 0.65 - 0.5)


def test_cheaper_is_better_and_a_better_loss_is_better():
    def total(loss, cost):
        return rewards([0.8, loss], [cost], [False], cost_reference=100).total

    assert total(0.4, 10) > total(0.4, 20)
    assert total(0.3, 10) > total(0.4, 10)


@pytest.mark.parametrize(
    ("losses", "costs", "violations", "reference"),
    [([0.8], [1], [False], 1), ([], [], [], 1), ([0.8, 0.7], [1], [False], 0), ([0.0, 0.7], [1], [False], 1)],
)
def test_rewards_that_cannot_be_are_refused(losses, costs, violations, reference):
    with pytest.raises(FederationError, match="rewards"):
        rewards(losses, costs, violations, cost_reference=reference)
