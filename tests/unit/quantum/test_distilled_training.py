"""Soft labels through the local optimizer: the objective is the mixture, on the rows that a batch holds."""

import numpy as np
import pytest
from scipy.special import softmax

from llm_qfl.federation.config import QuantumConfig, TrainingConfig
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.types import Rows
from llm_qfl.quantum.distillation import Distillation, Lesson
from llm_qfl.quantum.model import get_model
from llm_qfl.quantum.training import round_budget, train

MODEL = get_model(QuantumConfig(qubits=2, layers=1), 2)


def example(rows=12, seed=0):
    rng = np.random.default_rng(seed)
    theta = MODEL.initial_theta(rng)
    x, y = rng.normal(size=(rows, 2)), rng.integers(0, 2, rows)
    return theta, Rows(x, y, softmax(rng.normal(scale=2, size=(rows, 2)), axis=1))


def run(rows, theta, distillation, **keys):
    config = TrainingConfig(**{"steps": 6, "l2": 0.0, **keys})
    return train(
        MODEL,
        rows,
        theta,
        config=config,
        budget=round_budget(MODEL, config),
        learning_rate=0.1,
        rng=np.random.default_rng(1),
        distillation=distillation,
    )


@pytest.mark.parametrize("optimizer", ["adam", "spsa", "cobyla"])
@pytest.mark.parametrize("batch_size", [0, 5])
def test_the_first_loss_is_the_mixture_at_the_start(optimizer, batch_size):
    if optimizer == "cobyla" and batch_size:
        pytest.skip("COBYLA takes no batches")
    theta, rows = example()
    term = Distillation(0.6, 2.0)
    found = run(rows, theta, term, optimizer=optimizer, batch_size=batch_size)
    np.testing.assert_array_equal(found.first_theta, theta)
    chosen = np.random.default_rng(1).permutation(12)[:5] if batch_size else np.arange(12)
    batch = rows.take(chosen)
    expected = MODEL.loss(theta, batch.x, batch.y, Lesson(term, batch.soft))
    assert found.first_loss == pytest.approx(expected, abs=1e-12)
    assert found.first_loss != pytest.approx(MODEL.loss(theta, batch.x, batch.y), abs=1e-3)


def test_soft_labels_stay_with_their_rows():
    _, rows = example()
    taken = rows.take(np.array([3, 0, 7]))
    np.testing.assert_array_equal(taken.soft, rows.soft[[3, 0, 7]])
    np.testing.assert_array_equal(taken.y, rows.y[[3, 0, 7]])
    assert Rows(rows.x, rows.y).take(np.array([1])).soft is None


@pytest.mark.parametrize("off", [None, Distillation(0.0)])
def test_without_a_weight_it_is_the_plain_training_to_the_last_digit(off):
    theta, rows = example()
    plain = run(Rows(rows.x, rows.y), theta, None)
    np.testing.assert_array_equal(run(rows, theta, off).theta, plain.theta)
    assert np.abs(run(rows, theta, Distillation(0.5)).theta - plain.theta).max() > 1e-3


def test_a_perfect_teacher_is_followed():
    theta, rows = example(rows=30)
    target = theta + np.random.default_rng(4).normal(scale=0.5, size=len(theta))
    soft = np.exp(MODEL.log_probabilities(target, rows.x))
    taught = Rows(rows.x, rows.y, soft)  # the labels are noise, the teacher a QNN
    found = run(taught, theta, Distillation(1.0), steps=60)
    assert found.best_loss < 0.1 * found.first_loss


def test_distillation_costs_no_circuit_more():
    theta, rows = example()
    assert run(rows, theta, Distillation(0.5)).spent.circuits == run(rows, theta, None).spent.circuits


def test_missing_or_wrong_soft_labels_are_refused():
    theta, rows = example()
    with pytest.raises(DataError, match="these rows have none"):
        run(Rows(rows.x, rows.y), theta, Distillation(0.5))
    with pytest.raises(DataError, match="of other rows or classes"):
        run(Rows(rows.x, rows.y, rows.soft[:5]), theta, Distillation(0.5))
