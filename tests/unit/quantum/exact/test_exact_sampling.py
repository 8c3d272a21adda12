"""Shots follow the exact distribution."""

import numpy as np
import pytest
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp, Statevector
from scipy.stats import chisquare

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact.sampling import basis_probabilities, measurement_groups, sample_counts, sample_expectations


@pytest.fixture
def state():
    circuit = QuantumCircuit(3)
    circuit.ry(0.7, 0)
    circuit.rx(1.1, 1)
    circuit.cx(0, 2)
    circuit.rzz(0.4, 1, 2)
    circuit.ry(0.3, 1)
    circuit.ry(0.5, 2)
    return Statevector(circuit)


def test_counts_follow_the_distribution(state):
    probabilities = state.probabilities()[None]
    counts = sample_counts(np.repeat(probabilities, 2, axis=0), 20_000, np.random.default_rng(5))
    assert counts.shape == (2, 8)
    assert (counts.sum(axis=1) == 20_000).all()
    for row in counts:
        assert chisquare(row, 20_000 * probabilities[0]).pvalue > 1e-3


def test_counts_are_seeded(state):
    draws = [sample_counts(state.probabilities()[None], 100, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_basis_probabilities_equal_qiskit(state):
    rotated = QuantumCircuit(3)
    rotated.h(0)
    rotated.sdg(2)
    rotated.h(2)
    expected = state.evolve(rotated).probabilities()
    np.testing.assert_allclose(basis_probabilities(state.data[None], "XZY")[0], expected, atol=1e-12)


def test_groups_commute_qubit_wise_and_keep_every_term():
    observable = SparsePauliOp(["III", "ZZI", "IZZ", "XXI", "IXX", "YII"], [0.5, 1, 2, 3, 4, 5])
    constant, groups = measurement_groups(observable)
    assert constant == 0.5
    assert sorted(c for g in groups for c in g.coefficients) == [1, 2, 3, 4, 5]
    assert len(groups) == 3


def test_noisy_expectations_spread_as_the_variances_say(state):
    """The mean over many draws is exact, and its spread is that of independent groups."""
    observable = SparsePauliOp(["ZZI", "IZZ", "XIX", "III"], [1.0, -0.5, 0.7, 0.25])
    draws, shots = 4000, 64
    states = np.repeat(state.data[None], draws, axis=0)
    values, errors = sample_expectations(states, [observable], shots, np.random.default_rng(0))
    diagonal, other = observable[:2], observable[2:3]
    variance = sum(
        (state.expectation_value(o @ o) - state.expectation_value(o) ** 2).real / shots for o in (diagonal, other)
    )
    exact = state.expectation_value(observable).real
    assert abs(values.mean() - exact) < 4 * np.sqrt(variance / draws)
    assert values.var() == pytest.approx(variance, rel=0.1)
    assert (errors**2).mean() == pytest.approx(variance * (shots - 1) / shots, rel=0.1)


def test_spread_equals_that_of_qiskits_estimator():
    """Two groups, 300 repetitions each; Qiskit's own error bars add the terms' errors, so the spread is compared."""
    from qiskit.circuit import Parameter
    from qiskit.primitives import BackendEstimatorV2
    from qiskit_aer import AerSimulator

    angle, draws, shots = Parameter("a"), 300, 64
    circuit = QuantumCircuit(2)
    circuit.ry(angle, 0)
    circuit.cx(0, 1)
    circuit.ry(0.4, 1)
    observable = SparsePauliOp(["ZZ", "ZI", "XX"], [1.0, -0.5, 0.7])
    estimator = BackendEstimatorV2(backend=AerSimulator(), options={"seed_simulator": 3})
    job = estimator.run([(circuit, observable, np.full((draws, 1), 0.7))], precision=1 / np.sqrt(shots))
    theirs = job.result()[0].data.evs
    state = Statevector(circuit.assign_parameters([0.7])).data
    ours, _ = sample_expectations(np.tile(state, (draws, 1)), [observable], shots, np.random.default_rng(1))
    assert abs(ours.mean() - theirs.mean()) < 4 * np.hypot(ours.std(), theirs.std()) / np.sqrt(draws)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.2)


def test_no_shots_are_refused():
    with pytest.raises(CircuitError, match="at least 1, got 0"):
        sample_counts(np.ones((1, 2)) / 2, 0, np.random.default_rng(0))
