import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import DataError
from llm_qfl.quantum.distillation import Distillation, checked_soft
from llm_qfl.quantum.model import QNNModel

DIRECTIONS = ["forward", "reverse"]
TERMS = [
    Distillation(weight, temperature, direction)
    for weight in (0.0, 0.3, 1.0)
    for temperature in (0.5, 1.0, 2.0)
    for direction in DIRECTIONS
]


class DistilledQNN(QNNModel):
    """The one hook: what the rows of a gradient lose."""

    term, soft = Distillation(0.0), np.zeros((0, 0))

    def _row_losses(self, values, rest, y, *_):
        logp = self.readout.log_probabilities(values, rest)
        losses, by_logp = self.term.row_losses(logp, y, self.soft)
        return losses, *self.readout.pull_back(values, rest, logp, by_logp)


def example(readout="linear", classes=3, rows=5, circuit="reuploading", qubits=3, seed=0):
    model = DistilledQNN(QuantumConfig(circuit=circuit, readout=readout, qubits=qubits, layers=2), classes)
    rng = np.random.default_rng(seed)
    theta = model.initial_theta(rng) + rng.normal(scale=0.3, size=model.num_parameters)
    x, y = rng.normal(size=(rows, qubits)), rng.integers(0, classes, rows)
    return model, theta, x, y, softmax(rng.normal(scale=2, size=(rows, classes)), axis=1)


def by_scipy(term, logp, y, soft):
    """J in scipy's words: tempered distributions, `entropy` as the divergence."""
    student = softmax(logp / term.temperature, axis=1)
    teacher = softmax(np.log(soft) / term.temperature, axis=1)
    pair = (teacher, student) if term.direction == "forward" else (student, teacher)
    plain = -logp[np.arange(len(y)), y]
    return (1 - term.weight) * plain + term.weight * term.temperature**2 * entropy(*pair, axis=1)


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_the_loss_is_what_scipy_says(term):
    rng = np.random.default_rng(3)
    logp, soft = log_softmax(rng.normal(size=(7, 4)), axis=1), softmax(rng.normal(size=(7, 4)), axis=1)
    y = rng.integers(0, 4, 7)
    losses, _ = term.row_losses(logp, y, soft)
    np.testing.assert_allclose(losses, by_scipy(term, logp, y, soft), atol=1e-12)


def test_a_row_by_hand():
    """tau = 1, teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    logp, soft = np.log([[0.5, 0.5]]), np.array([[0.75, 0.25]])
    losses, by_logp = Distillation(0.4, 1.0).row_losses(logp, np.array([0]), soft)
    divergence = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert losses[0] == pytest.approx(0.6 * np.log(2) + 0.4 * divergence)
    np.testing.assert_allclose(by_logp, [[-0.6 + 0.4 * (0.5 - 0.75), 0.4 * (0.5 - 0.25)]])


@pytest.mark.parametrize("term", TERMS, ids=str)
@pytest.mark.parametrize(
    ("readout", "classes", "circuit"),
    [("linear", 3, "reuploading"), ("scale-bias", 2, "reuploading"), ("parity", 2, "zz-real-amplitudes")],
)
def test_the_gradient_through_a_real_qnn_is_that_of_finite_differences(term, readout, classes, circuit):
    model, theta, x, y, soft = example(readout, classes, circuit=circuit)
    model.term, model.soft = term, soft
    loss, gradient = model.loss_and_gradient(theta, x, y)

    def value(point):
        return float(by_scipy(term, model.log_probabilities(point, x), y, soft).mean())

    assert loss == pytest.approx(value(theta), abs=1e-12)
    step = 1e-5
    slope = [(value(theta + move) - value(theta - move)) / (2 * step) for move in step * np.eye(len(theta))]
    np.testing.assert_allclose(gradient, slope, atol=2e-8)
    assert np.abs(gradient).max() > 1e-3
    losses, by_row = model.jacobian(theta, x, y)
    np.testing.assert_allclose(losses.mean(), loss, atol=1e-13)
    np.testing.assert_allclose(by_row.mean(axis=0), gradient, atol=1e-12)


def test_a_weight_of_zero_is_plain_cross_entropy_to_the_last_digit():
    model, theta, x, y, soft = example()
    plain = QNNModel.loss_and_gradient(QNNModel(model.config, 3), theta, x, y)
    model.term, model.soft = Distillation(0.0), soft
    loss, gradient = model.loss_and_gradient(theta, x, y)
    assert loss == plain[0]
    np.testing.assert_array_equal(gradient, plain[1])


def test_b13_the_loss_that_budgets_follow_is_the_plain_one():
    model, theta, x, y, soft = example()
    model.term, model.soft = Distillation(0.7), soft
    expected = -model.log_probabilities(theta, x)[np.arange(len(y)), y].mean()
    assert model.loss(theta, x, y) == pytest.approx(expected)
    assert model.loss_and_gradient(theta, x, y)[0] != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_student_that_agrees_with_its_teacher_feels_nothing(direction):
    model, theta, x, y, _ = example()
    model.term, model.soft = Distillation(1.0, 2.0, direction), np.exp(model.log_probabilities(theta, x))
    loss, gradient = model.loss_and_gradient(theta, x, y)
    assert loss == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_descent_brings_the_student_to_the_teacher(direction):
    rng = np.random.default_rng(5)
    soft, logits = softmax(rng.normal(size=(4, 3)), axis=1), np.zeros((4, 3))
    term, y = Distillation(1.0, 2.0, direction), np.zeros(4, np.intp)
    for _ in range(400):
        logp = log_softmax(logits, axis=1)
        by_logp = term.row_losses(logp, y, soft)[1]
        logits -= 0.5 * (by_logp - np.exp(logp) * by_logp.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(np.exp(log_softmax(logits, axis=1)), soft, atol=1e-3)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_gradient_keeps_its_size_whatever_the_temperature(direction):
    """What tau^2 is for: near agreement J's slope tends to one limit."""
    rng = np.random.default_rng(6)
    logits, soft = rng.normal(scale=0.01, size=(1, 3)), softmax(rng.normal(scale=0.01, size=(1, 3)), axis=1)
    slopes = [
        Distillation(1.0, tau, direction).row_losses(log_softmax(logits, axis=1), np.zeros(1, np.intp), soft)[1]
        for tau in (1.0, 4.0, 16.0)
    ]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=0.05)
    np.testing.assert_allclose(slopes[2], slopes[0], rtol=0.05)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_probabilities_of_zero_stay_finite(direction):
    with np.errstate(all="raise", under="ignore"):
        losses, by_logp = Distillation(0.5, 2.0, direction).row_losses(
            np.log(np.array([[1.0, 1e-10], [1e-10, 1.0]])), np.array([0, 0]), np.array([[0.0, 1.0], [1.0, 0.0]])
        )
    assert np.isfinite(losses).all()
    assert np.isfinite(by_logp).all()
    expected = rel_entr([1.0], [1e-10]).sum()
    assert Distillation(1.0, 1.0).row_losses(np.log([[1e-10, 1 - 1e-10]]), np.array([0]), np.array([[1.0, 0.0]]))[
        0
    ] == pytest.approx([expected], rel=1e-6)


def test_uniform_teachers_only_smooth():
    """J with a uniform teacher does not care which class is which: the ablation's control."""
    rng = np.random.default_rng(8)
    logp, soft = log_softmax(rng.normal(size=(6, 3)), axis=1), np.full((6, 3), 1 / 3)
    y, order = np.zeros(6, np.intp), [2, 0, 1]
    one = Distillation(1.0).row_losses(logp, y, soft)[0]
    np.testing.assert_allclose(Distillation(1.0).row_losses(logp[:, order], y, soft)[0], one)


@pytest.mark.parametrize(
    "arguments", [(-0.1,), (1.1,), (float("nan"),), (0.3, 0.0), (0.3, -1.0), (0.3, float("inf")), (0.3, float("nan"))]
)
def test_impossible_terms_are_refused(arguments):
    with pytest.raises(DataError, match="expected a weight in"):
        Distillation(*arguments)


@pytest.mark.parametrize(
    ("soft", "message"),
    [
        (np.full((3, 2), 0.5), "of other rows or classes"),
        (np.array([[1.5, -0.5], [0.5, 0.5]]), "negative"),
        (np.array([[np.nan, 1.0], [0.5, 0.5]]), "not finite"),
        (np.array([[2.0, 3.0], [0.5, 0.5]]), "not logits"),
    ],
)
def test_soft_labels_are_checked(soft, message):
    with pytest.raises(DataError, match=message):
        checked_soft(soft, 2, 2)


def test_good_soft_labels_pass():
    soft = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    assert checked_soft(soft, 2, 2).dtype == np.float64
    assert checked_soft(np.zeros((0, 2)), 0, 2).shape == (0, 2)
