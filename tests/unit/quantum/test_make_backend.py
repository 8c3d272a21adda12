import numpy as np
import pytest
from qiskit.quantum_info import Statevector

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import BackendError, CircuitError
from llm_qfl.quantum.backends import make_backend
from llm_qfl.quantum.circuits import build_circuit

CONFIGS = [
    QuantumConfig(qubits=3, layers=2, readout="scale"),
    QuantumConfig(qubits=3, layers=2, readout="linear"),
    QuantumConfig(circuit="zz-real-amplitudes", qubits=3, layers=1, readout="bit"),
    QuantumConfig(circuit="qcnn", readout="parity"),
]


def example(config, rows=4, seed=0):
    made = build_circuit(config, 2)
    rng = np.random.default_rng(seed)
    return made, rng.normal(size=(rows, config.qubits)), rng.normal(size=len(made.weight_parameters)), rng


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.circuit}-{c.readout}")
def test_expectations_are_qiskits(config):
    made, x, weights, _ = example(config)
    expected = []
    for row in x:
        values = dict(zip(made.input_parameters + made.weight_parameters, [*row, *weights], strict=True))
        state = Statevector(made.circuit.assign_parameters(values))
        expected.append([state.expectation_value(op).real for op in made.observables])
    backend = make_backend(QuantumConfig(), made)
    np.testing.assert_allclose(backend.expectations(x, weights), expected, atol=1e-12)
    single = make_backend(QuantumConfig(precision="float32"), made)
    np.testing.assert_allclose(single.expectations(x, weights), expected, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.circuit}-{c.readout}")
def test_gradients_are_differences(config):
    made, x, weights, rng = example(config)
    backend = make_backend(QuantumConfig(), made)
    step = 1e-5
    moves = step * np.eye(len(weights))
    slope = np.stack(
        [(backend.expectations(x, weights + m) - backend.expectations(x, weights - m)) / (2 * step) for m in moves],
        axis=2,
    )
    values, jacobian = backend.jacobian(x, weights)
    np.testing.assert_allclose(values, backend.expectations(x, weights), atol=1e-14)
    np.testing.assert_allclose(jacobian, slope, atol=1e-8)

    back, seen = rng.normal(size=values.shape), []

    def cotangent(at):
        seen.append(at)
        return back

    values_again, pulled = backend.pull_back(x, weights, cotangent)
    assert len(seen) == 1
    np.testing.assert_allclose(seen[0], values, atol=1e-14)
    np.testing.assert_allclose(values_again, values, atol=1e-14)
    np.testing.assert_allclose(pulled, np.einsum("nk,nkp->p", back, jacobian), atol=1e-12)


def test_many_rows_of_many_outputs_take_a_sweep_more_and_give_the_same():
    made, x, weights, rng = example(QuantumConfig(qubits=5, layers=1, readout="linear"), rows=300)
    backend = make_backend(QuantumConfig(), made)
    back = rng.normal(size=(300, 5))
    _, jacobian = backend.jacobian(x, weights)
    for rows, sweeps in ((300, 3), (4, 2)):
        assert backend.gradient_sweeps(rows) == sweeps
        values, pulled = backend.pull_back(x[:rows], weights, lambda at: back[: len(at)])
        np.testing.assert_allclose(pulled, np.einsum("nk,nkp->p", back[:rows], jacobian[:rows]), atol=1e-11)
        np.testing.assert_allclose(values, backend.expectations(x[:rows], weights), atol=1e-14)


def test_an_unknown_backend_is_refused():
    with pytest.raises(BackendError, match=r"expected exact, aer, .* got 'abacus'"):
        make_backend(QuantumConfig(backend="abacus"), build_circuit(QuantumConfig(), 2))


def test_a_circuit_beyond_memory_is_refused_before_anything_is_computed():
    with pytest.raises(CircuitError, match="qubits"):
        make_backend(QuantumConfig(), build_circuit(QuantumConfig(qubits=30, layers=1), 2))
