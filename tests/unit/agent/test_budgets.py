import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.budgets import StepCost, fit, remaining
from llm_qfl.federation.config import QuantumConfig, TrainingConfig
from llm_qfl.federation.errors import ConfigError


@pytest.mark.parametrize("optimizer", ["adam", "spsa", "cobyla"])
def test_steps_cost_what_training_says(optimizer):
    from llm_qfl.quantum.model import get_model
    from llm_qfl.quantum.training import least_budget, round_budget

    model = get_model(QuantumConfig(qubits=2, layers=1), 2)
    cost = StepCost.of(optimizer, model.gradient_cost, model.num_parameters)
    assert cost.least == least_budget(model, TrainingConfig(optimizer=optimizer))
    for steps in (1, 2, 7, 40):
        budget = round_budget(model, TrainingConfig(optimizer=optimizer, steps=steps))
        assert cost.evaluations(steps) == budget
        assert cost.spent(budget) == budget
        assert cost.steps(budget) == max(steps, cost.steps(cost.least))
    assert cost.spent(cost.evaluations(9) + cost.per_step - 1) == cost.evaluations(9)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ConfigError, match="expected adam"):
        StepCost.of("sgd", 3, 3)


def test_a_limit_of_zero_is_none():
    assert remaining(0, 500) is None
    assert remaining(500, 400) == 100
    assert remaining(500, 600) == 0


ADAM = StepCost.of("adam", 10, 5)


def test_cuts_by_hand():
    assert fit({"a": 101, "b": 51}, None, ADAM) == {"a": 101, "b": 51}
    assert fit({"a": 101, "b": 51}, 152, ADAM) == {"a": 101, "b": 51}
    assert fit({"a": 101, "b": 51}, 76, ADAM) == {"a": 41, "b": 21}  # half: 50 pays 4 steps, 25 pays 2
    assert fit({"a": 101, "b": 11}, 31, ADAM) == {"a": 11, "b": 11}  # the floor of b is paid by a
    assert fit({"a": 101, "b": 51}, 21, ADAM) is None


@settings(max_examples=80, deadline=None)
@given(steps=st.lists(st.integers(1, 30), min_size=1, max_size=6), left=st.integers(0, 900))
def test_a_cut_round_is_affordable_or_refused(steps, left):
    budgets = {f"s{i}": ADAM.evaluations(n) for i, n in enumerate(steps)}
    cut = fit(budgets, left, ADAM)
    if cut is None:
        assert ADAM.least * len(steps) > left
        return
    assert sum(ADAM.spent(one) for one in cut.values()) <= left
    assert all(ADAM.least <= cut[name] <= budgets[name] for name in budgets)
