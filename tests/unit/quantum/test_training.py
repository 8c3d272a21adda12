import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.config import QuantumConfig, TrainingConfig
from llm_qfl.federation.errors import ConfigError, DataError
from llm_qfl.federation.types import Rows
from llm_qfl.quantum.model import get_model
from llm_qfl.quantum.training import ADAM_EPSILON, adam_steps, least_budget, round_budget, train

MODEL = get_model(QuantumConfig(qubits=2, layers=1, readout="scale"), 2)  # 9 parameters, a gradient costs 13
OPTIMIZERS = ("adam", "spsa", "cobyla")


class Spy:
    """The model, remembering every call."""

    def __init__(self, model):
        self._model, self.calls = model, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def loss(self, theta, x, y):
        value = self._model.loss(theta, x, y)
        self.calls.append((1, theta.copy(), len(y), value, y))
        return value

    def loss_and_gradient(self, theta, x, y):
        value, gradient = self._model.loss_and_gradient(theta, x, y)
        self.calls.append((self._model.gradient_cost, theta.copy(), len(y), value, y))
        return value, gradient


def rows(n=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return Rows(x, (x[:, 0] + 0.3 * rng.normal(size=n) > 0).astype(np.intp))


def run(optimizer, *, data=None, budget=None, learning_rate=0.1, seed=1, **config):
    settings_ = TrainingConfig(optimizer=optimizer, **{"steps": 12, "l2": 0.0, **config})
    spy, theta = Spy(MODEL), MODEL.initial_theta(np.random.default_rng(5))
    result = train(
        spy,
        rows() if data is None else data,
        theta,
        config=settings_,
        budget=round_budget(MODEL, settings_) if budget is None else budget,
        learning_rate=learning_rate,
        rng=np.random.default_rng(seed),
    )
    return spy, theta, result, settings_


@pytest.mark.parametrize(
    ("optimizer", "batch_size"), [("adam", 0), ("adam", 5), ("spsa", 0), ("spsa", 5), ("cobyla", 0)]
)
def test_the_first_evaluated_point_is_the_received_vector(optimizer, batch_size):
    spy, theta, result, _ = run(optimizer, batch_size=batch_size)
    np.testing.assert_array_equal(spy.calls[0][1], theta)
    np.testing.assert_array_equal(result.first_theta, theta)
    assert result.first_loss == spy.calls[0][3]


@pytest.mark.parametrize(
    ("optimizer", "config", "expected"),
    [
        ("adam", {}, 12 * 13 + 1),
        ("adam", {"batch_size": 5}, 12 * 13 + 1),
        ("adam", {"batch_size": 50}, 12 * 13 + 1),
        ("spsa", {}, 2 * 12 + 2),
        ("spsa", {"batch_size": 5}, 2 * 12 + 2),
        ("cobyla", {}, 12),
        ("cobyla", {"steps": 30}, 30),
        ("cobyla", {"steps": 3}, 9 + 2),
    ],
)
def test_the_budget_is_what_is_really_called(optimizer, config, expected):
    spy, _, result, settings_ = run(optimizer, **config)
    assert round_budget(MODEL, settings_) == expected
    assert sum(cost for cost, *_ in spy.calls) == expected == result.spent.evaluations
    assert result.spent.circuits == sum(cost * n for cost, _, n, *_ in spy.calls)
    sweeps = sum((1 if cost == 1 else 2) * n for cost, _, n, *_ in spy.calls)
    assert result.spent.simulated_circuits == sweeps
    assert (result.spent.shots, result.spent.validation_circuits) == (0, 0)
    assert [n for n, _ in result.history] == np.cumsum([cost for cost, *_ in spy.calls]).tolist()


@given(st.sampled_from(OPTIMIZERS), st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_no_budget_is_exceeded(optimizer, extra):
    least = least_budget(MODEL, TrainingConfig(optimizer=optimizer))
    spy, _, result, _ = run(optimizer, budget=least + extra)
    step = {"adam": 13, "spsa": 2, "cobyla": 1}[optimizer]
    assert least + extra - step < sum(cost for cost, *_ in spy.calls) == result.spent.evaluations <= least + extra


@pytest.mark.parametrize(("optimizer", "least"), [("adam", 14), ("spsa", 4), ("cobyla", 11)])
def test_a_budget_that_pays_no_step_is_refused(optimizer, least):
    assert least_budget(MODEL, TrainingConfig(optimizer=optimizer, steps=50)) == least
    with pytest.raises(ConfigError, match=f"at least {least} objective evaluations.*got {least - 1}"):
        run(optimizer, budget=least - 1)
    spy, *_ = run(optimizer, budget=least)
    assert sum(cost for cost, *_ in spy.calls) == least


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_best_seen_point_is_returned(optimizer):
    spy, _, result, _ = run(optimizer, learning_rate=1.5, steps=25)  # so long a step that the last is not the best
    losses = [value for *_, value, _ in spy.calls]
    assert result.best_loss == min(losses)
    assert optimizer == "cobyla" or min(losses) < losses[-1]
    assert MODEL.loss(result.theta, rows().x, rows().y) == pytest.approx(result.best_loss, abs=1e-12)
    assert [value for _, value in result.history] == losses


def test_adams_last_point_can_be_the_best():
    spy, _, result, _ = run("adam", learning_rate=0.02)
    np.testing.assert_array_equal(result.theta, spy.calls[-1][1])
    assert spy.calls[-1][0] == 1


@pytest.mark.parametrize("optimizer", ["adam", "spsa"])
def test_minibatches_return_the_last_point_scored_on_the_first_batch(optimizer):
    data = rows(23)
    spy, _, result, _ = run(optimizer, data=data, batch_size=5, steps=9)
    assert {n for _, _, n, *_ in spy.calls} == {5}
    np.testing.assert_array_equal(result.theta, spy.calls[-1][1])
    np.testing.assert_array_equal(spy.calls[-1][4], spy.calls[0][4])
    assert result.best_loss == spy.calls[-1][3]


def test_every_row_is_seen_once_in_a_pass():
    data = Rows(np.arange(22.0).reshape(11, 2) / 10, np.zeros(11, np.intp))
    seen = []

    class Rowwatch(Spy):
        def loss_and_gradient(self, theta, x, y):
            seen.extend(np.round(x[:, 0] * 5).astype(int).tolist())
            return super().loss_and_gradient(theta, x, y)

    config = TrainingConfig(batch_size=3, steps=11)
    theta = MODEL.initial_theta(np.random.default_rng(5))
    budget = round_budget(MODEL, config)
    rng = np.random.default_rng(0)
    train(Rowwatch(MODEL), data, theta, config=config, budget=budget, learning_rate=0.1, rng=rng)
    passes = np.array(seen).reshape(3, 11)
    for one in passes:
        assert sorted(one.tolist()) == list(range(11))
    assert passes[0].tolist() != passes[1].tolist()


def test_two_rows_of_a_spsa_step_are_the_same():
    spy, *_ = run("spsa", data=rows(23), batch_size=5, steps=9)
    labels = [y.tolist() for *_, y in spy.calls[1:-1]]
    assert labels[0::2] == labels[1::2]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_lowers_the_loss_and_repeats(optimizer):
    _, _, result, _ = run(optimizer, data=rows(60), steps=60)
    assert result.best_loss < 0.75 * result.first_loss
    _, _, again, _ = run(optimizer, data=rows(60), steps=60)
    np.testing.assert_array_equal(again.theta, result.theta)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    _, _, other, _ = run(optimizer, data=rows(60), steps=60, seed=2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert (optimizer == "spsa") == (np.abs(other.theta - result.theta).max() > 1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_l2_is_in_the_training_loss_and_pulls(optimizer):
    spy, theta, result, _ = run(optimizer, l2=0.5)
    assert result.first_loss == pytest.approx(spy.calls[0][3] + 0.5 * theta @ theta)
    assert result.theta @ result.theta < theta @ theta


def test_adam_takes_the_librarys_points():
    from qiskit_machine_learning.optimizers import ADAM

    data, theta = rows(20), MODEL.initial_theta(np.random.default_rng(5))
    library = ADAM(maxiter=15, lr=0.07, beta_1=0.9, beta_2=0.99, noise_factor=ADAM_EPSILON, tol=0.0)
    expected = library.minimize(
        lambda point: MODEL.loss(point, data.x, data.y),
        theta,
        jac=lambda point: MODEL.loss_and_gradient(point, data.x, data.y)[1],
    )
    ours = adam_steps(theta, 0.07, 15, lambda point: MODEL.loss_and_gradient(point, data.x, data.y)[1])
    np.testing.assert_allclose(ours, expected.x, atol=1e-13)


def test_the_gradient_with_l2_is_right():
    # one Adam step: g / (|g| + epsilon / sqrt(1 - decay)), as the library adds epsilon to the uncorrected root
    data, theta = rows(), MODEL.initial_theta(np.random.default_rng(5))

    def objective(point):
        return MODEL.loss(point, data.x, data.y) + 0.3 * point @ point

    slope = [(objective(theta + m) - objective(theta - m)) / 2e-5 for m in 1e-5 * np.eye(9)]
    config = TrainingConfig(steps=1, l2=0.3)
    result = train(MODEL, data, theta, config=config, budget=14, learning_rate=1e-3, rng=np.random.default_rng(0))
    expected = -1e-3 * np.array(slope) / (np.abs(slope) + ADAM_EPSILON / 0.1)
    np.testing.assert_allclose(result.theta - theta, expected, atol=1e-9)


def test_spsa_moves_every_coordinate_by_the_rate_at_first():
    spy, theta, *_ = run("spsa", learning_rate=0.05, steps=1)
    np.testing.assert_allclose(np.abs(spy.calls[-1][1] - theta), 0.05, atol=1e-12)


def test_a_site_of_one_class_or_one_row_trains_and_an_empty_one_is_refused():
    data = rows()
    for some in (Rows(data.x, np.zeros(12, np.intp)), Rows(data.x[:1], data.y[:1])):
        _, _, result, _ = run("adam", data=some)
        assert result.best_loss < result.first_loss
    with pytest.raises(DataError, match="no training rows"):
        run("adam", data=Rows(data.x[:0], data.y[:0]))
