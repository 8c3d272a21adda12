import warnings

import numpy as np
import pytest
from qiskit.quantum_info import Statevector

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.types import Rows
from llm_qfl.quantum.model import QNNModel, get_model

CASES = [
    (circuit, readout, classes)
    for circuit in ("reuploading", "zz-real-amplitudes", "qcnn")
    for readout in ("scale", "scale-bias", "linear", "parity", "bit")
    for classes in (2, 3)
    if not (classes == 3 and (readout == "parity" or (circuit == "qcnn" and readout != "linear")))
]


def example(circuit="reuploading", readout="scale", classes=2, rows=6, **more):
    config = QuantumConfig(circuit=circuit, readout=readout, **{"layers": 2, **more})
    model = get_model(config, classes)
    rng = np.random.default_rng(7)
    theta = model.initial_theta(rng) + rng.normal(scale=0.3, size=model.num_parameters)
    return model, theta, rng.normal(size=(rows, config.qubits)), rng.integers(0, classes, rows)


def states(model, theta, x):
    made = model.circuit
    weights = theta[: len(made.weight_parameters)]
    for row in x:
        values = dict(zip(made.input_parameters + made.weight_parameters, [*row, *weights], strict=True))
        yield Statevector(made.circuit.assign_parameters(values))


@pytest.mark.parametrize(("circuit", "readout", "classes"), CASES)
def test_gradients_are_right_and_alive(circuit, readout, classes):
    model, theta, x, y = example(circuit, readout, classes)
    loss, gradient = model.loss_and_gradient(theta, x, y)
    assert loss == pytest.approx(model.loss(theta, x, y), abs=1e-14)
    step = 1e-5
    slope = [
        (model.loss(theta + m, x, y) - model.loss(theta - m, x, y)) / (2 * step) for m in step * np.eye(len(theta))
    ]
    np.testing.assert_allclose(gradient, slope, atol=1e-8)
    assert np.abs(gradient).max() > 1e-3
    losses, by_row = model.jacobian(theta, x, y)
    assert by_row.shape == (len(x), model.num_parameters)
    np.testing.assert_allclose(losses.mean(), loss, atol=1e-14)
    np.testing.assert_allclose(by_row.mean(axis=0), gradient, atol=1e-13)
    for row in range(len(x)):
        alone = model.loss_and_gradient(theta, x[row : row + 1], y[row : row + 1])
        np.testing.assert_allclose(losses[row], alone[0], atol=1e-13)
        np.testing.assert_allclose(by_row[row], alone[1], atol=1e-12)


@pytest.mark.parametrize(("circuit", "readout", "classes"), CASES)
def test_log_probabilities_are_normal_and_differ_by_class(circuit, readout, classes):
    model, theta, x, _ = example(circuit, readout, classes)
    logp = model.log_probabilities(theta, x)
    np.testing.assert_allclose(np.exp(logp).sum(axis=1), 1.0, atol=1e-12)
    assert np.ptp(logp, axis=1).min() > 1e-6


def test_scale_readout_from_qiskits_states():
    model, theta, x, _ = example()
    z = [[2 * state.probabilities([q])[0] - 1 for q in (0, 1)] for state in states(model, theta, x)]
    logits = np.exp(theta[-1]) * np.array(z)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(model.log_probabilities(theta, x), expected, atol=1e-12)


def test_the_qcnn_has_opposite_logits():
    model, theta, x, _ = example("qcnn", "scale")
    z = np.array([2 * state.probabilities([3])[0] - 1 for state in states(model, theta, x)])
    expected = -np.log1p(np.exp(-2 * np.exp(theta[-1]) * z))
    np.testing.assert_allclose(model.log_probabilities(theta, x)[:, 0], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("readout", "classes", "interpret"),
    [
        ("bit", 2, lambda i: i % 2),
        ("bit", 3, lambda i: i % 3),
        ("bit", 4, lambda i: i % 4),
        ("parity", 2, lambda i: bin(i).count("1") % 2),
    ],
)
def test_probability_readouts_are_sampler_qnns(readout, classes, interpret):
    from qiskit.primitives import StatevectorSampler
    from qiskit_machine_learning.neural_networks import SamplerQNN

    model, theta, x, _ = example("zz-real-amplitudes", readout, classes, rows=3, layers=1, qubits=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns of its own defaults
        qnn = SamplerQNN(
            circuit=model.circuit.circuit,
            sampler=StatevectorSampler(default_shots=20_000, seed=3),
            input_params=list(model.circuit.input_parameters),
            weight_params=list(model.circuit.weight_parameters),
            interpret=interpret,
            output_shape=classes,
        )
        expected = np.asarray(qnn.forward(x, theta))
    assert np.abs(np.exp(model.log_probabilities(theta, x)) - expected).max() < 5 * 0.5 / np.sqrt(20_000)
    exact = np.zeros((len(x), classes))  # and to the last digits from the states
    for row, state in enumerate(states(model, theta, x)):
        for i, p in enumerate(state.probabilities()):
            exact[row, interpret(i)] += p
    np.testing.assert_allclose(np.exp(model.log_probabilities(theta, x)), exact, atol=1e-12)


@pytest.mark.parametrize("circuit", ["reuploading", "zz-real-amplitudes", "qcnn"])
def test_permuted_inputs_change_the_loss(circuit):
    model, theta, x, y = example(circuit)
    for permuted in (np.roll(x, 1, axis=1), np.roll(x, 1, axis=0)):
        assert abs(model.loss(theta, permuted, y) - model.loss(theta, x, y)) > 1e-4


def test_a_loss_scores_theta_and_nothing_else():
    model, theta, x, y = example()
    before = model.loss(theta, x, y)
    kept = theta.copy()
    model.loss_and_gradient(theta + 1, x, y)
    model.loss(theta - 1, x[:2], y[:2])
    assert model.loss(theta, x, y) == before
    np.testing.assert_array_equal(theta, kept)


def test_theta_is_circuit_weights_then_readout():
    model = QNNModel(QuantumConfig(layers=2, readout="scale-bias"), 3)
    assert model.parameter_names == (
        *(f"theta[{i}]" for i in range(32)),
        "readout/log-scale",
        *(f"readout/bias[{c}]" for c in range(3)),
    )
    assert (model.num_parameters, model.num_inputs, model.classes) == (36, 4, 3)
    assert model.gradient_cost == 2 * 24 + 1  # the readout's weights cost nothing, w and b share a gate


def test_first_vectors_come_from_their_generator():
    for circuit, readout, classes in CASES:
        model = get_model(QuantumConfig(circuit=circuit, readout=readout), classes)
        first, again, other = (model.initial_theta(np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first.shape == (model.num_parameters,)
        assert first.dtype == np.float64
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 1e-3


def test_scores_are_sums_and_add_up():
    model, theta, x, y = example(classes=3, readout="linear", rows=9)
    logp = model.log_probabilities(theta, x)
    whole = model.scores(theta, Rows(x, y))
    assert whole.loss == pytest.approx(-np.mean([logp[i, c] for i, c in enumerate(y)]))
    assert whole.accuracy == pytest.approx(np.mean(logp.argmax(axis=1) == y))
    assert whole.rows.tolist() == [int((y == c).sum()) for c in range(3)]
    parts = model.scores(theta, Rows(x[:4], y[:4])) + model.scores(theta, Rows(x[4:], y[4:]))
    assert parts.loss_sum == pytest.approx(whole.loss_sum)
    assert parts.correct.tolist() == whole.correct.tolist()


def test_no_rows_no_scores():
    model, theta, x, y = example(classes=3)
    none = model.scores(theta, Rows(x[:0], y[:0]))
    assert (none.loss, none.accuracy, none.count) == (None, None, 0)
    assert none.rows.shape == none.correct.shape == (3,)


def test_a_model_is_built_once():
    assert get_model(QuantumConfig(layers=2), 2) is get_model(QuantumConfig(layers=2), 2)
    assert get_model(QuantumConfig(layers=2), 3) is not get_model(QuantumConfig(layers=2), 2)


def test_float32_is_near():
    model, theta, x, y = example()
    single = get_model(QuantumConfig(layers=2, readout="scale", precision="float32"), 2)
    loss, gradient = single.loss_and_gradient(theta, x, y)
    assert loss == pytest.approx(model.loss(theta, x, y), abs=1e-5)
    np.testing.assert_allclose(gradient, model.loss_and_gradient(theta, x, y)[1], atol=1e-5)
    assert gradient.dtype == np.float64
