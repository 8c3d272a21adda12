"""Shared trajectories: the split of a channel, and the law of the shots against density matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import DensityMatrix, Kraus, SuperOp, random_quantum_channel
from qiskit_aer.noise import amplitude_damping_error, depolarizing_error, pauli_error, thermal_relaxation_error
from scipy.stats import chi2

from llm_qfl.quantum.sampled.trajectories import Trajectories, UnsupportedCircuitError, split_channel

PERFECT = np.eye(2)
A, B = np.exp(-1 / 50), np.exp(-1 / 40)


def mixture(split, side):
    rest = SuperOp(Kraus(list(split.krauses))).data if split.quiet < 1 else np.zeros((side**2, side**2))
    return split.quiet * np.eye(side**2) + (1 - split.quiet) * rest


@given(st.integers(1, 2), st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=40)
def test_the_mixture_is_the_channel_and_its_rest_a_channel(qubits, seed, share):
    side = 2**qubits
    wild = SuperOp(random_quantum_channel(side, side, seed=seed)).data
    channel = SuperOp(share * np.eye(side**2) + (1 - share) * wild)
    split = split_channel(channel)
    assert share - 1e-9 <= split.quiet <= 1
    np.testing.assert_allclose(mixture(split, side), channel.data, atol=1e-7)
    if split.quiet < 1 - 1e-6:
        total = sum(k.conj().T @ k for k in split.krauses)
        np.testing.assert_allclose(total, np.eye(side), atol=1e-5)


@pytest.mark.parametrize(
    ("error", "quiet"),
    [
        (depolarizing_error(0.2, 1), 1 - 0.2 * 3 / 4),
        (depolarizing_error(0.2, 2), 1 - 0.2 * 15 / 16),
        (pauli_error([("X", 0.1), ("Z", 0.05), ("I", 0.85)]), 0.85),
        # Choi matrix [[1, b], [b, a]] on |00>, |11>: a = exp(-t/T1), b = exp(-t/T2); more than Aer's own mixture keeps
        (thermal_relaxation_error(50.0, 40.0, 1.0), (A - B**2) / (1 + A - 2 * B)),
        (amplitude_damping_error(0.3), 0.0),  # not even the gentlest of its Kraus operators is a multiple of one
        (pauli_error([("I", 1.0)]), 1.0),
    ],
)
def test_how_often_nothing_happens_is_the_closed_form(error, quiet):
    assert split_channel(error).quiet == pytest.approx(quiet, abs=1e-9)


def noisy_circuit(rng, qubits=3, depth=12):
    """Random gates with random channels after them; returns circuit, errors and the state they make."""
    circuit, angle, errors = QuantumCircuit(qubits, qubits), Parameter("a"), {}
    state, value = DensityMatrix.from_int(0, 2**qubits), float(rng.normal())
    for _ in range(depth):
        name = str(rng.choice(["sx", "rz", "turn", "cz", "ecr", "h"]))
        on = tuple(int(q) for q in rng.permutation(qubits)[: 2 if name in ("cz", "ecr") else 1])
        step = QuantumCircuit(len(on))
        if name == "turn":
            circuit.rz(2 * angle + 0.3, *on)
            step.rz(2 * value + 0.3, 0)
        elif name == "rz":
            circuit.rz(0.7, *on)
            step.rz(0.7, 0)
        else:
            getattr(circuit, name)(*on)
            getattr(step, name)(*range(len(on)))
        state = state.evolve(step, list(on))
        if name not in ("turn", "rz"):
            if (name, on) not in errors:
                wild = SuperOp(random_quantum_channel(2 ** len(on), 2 ** len(on), seed=int(rng.integers(2**31)))).data
                errors[name, on] = SuperOp(0.8 * np.eye(4 ** len(on)) + 0.2 * wild)
            state = state.evolve(errors[name, on], list(on))
    if angle not in circuit.parameters:
        circuit.rz(2 * angle, 0)
    circuit.measure(range(qubits), range(qubits))
    return circuit, errors, state, value


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_the_shots_have_the_law_of_the_density_matrix(seed):
    circuit, errors, state, value = noisy_circuit(np.random.default_rng(seed))
    confusion = np.array([[0.9, 0.1], [0.2, 0.8]])
    shots = 20_000
    (counts,) = Trajectories(circuit, errors, {1: confusion}).counts(np.array([[value]]), shots, np.array([seed]))
    law = np.real(np.diag(state.data)).clip(0).reshape(2, 2, 2)  # qubits 2, 1, 0
    law = np.einsum("abc,bd->adc", law, confusion).reshape(-1)
    likely = law > 1e-9
    assert counts[~likely].sum() == 0
    distance = ((counts - shots * law)[likely] ** 2 / (shots * law[likely])).sum()
    assert chi2.sf(distance, max(likely.sum() - 1, 1)) > 1e-7


def test_points_are_drawn_alike_whoever_draws_them_and_differently_from_each_other(monkeypatch):
    circuit, errors, _, value = noisy_circuit(np.random.default_rng(5))
    run = Trajectories(circuit, errors, {0: PERFECT})
    points, seeds = np.full((6, 1), value), np.arange(6)
    together = run.counts(points, 500, seeds)
    monkeypatch.setenv("LLM_QFL_THREADS", "1")
    np.testing.assert_array_equal(run.counts(points[2:], 500, seeds[2:]), together[2:])
    assert len({tuple(row) for row in together}) == 6
    assert (together.sum(axis=1) == 500).all()


def test_the_share_of_disturbed_shots_is_the_product_over_the_gates():
    circuit = QuantumCircuit(2, 2)
    circuit.sx(0)
    circuit.sx(0)
    circuit.cz(0, 1)
    circuit.measure([0, 1], [0, 1])
    errors = {("sx", (0,)): depolarizing_error(0.1, 1), ("cz", (0, 1)): depolarizing_error(0.2, 2)}
    run = Trajectories(circuit, errors, {})
    assert run.disturbed == pytest.approx(1 - (1 - 0.075) ** 2 * (1 - 0.2 * 15 / 16))
    assert run.items == 2  # both sx are one block


@pytest.mark.parametrize("gate", ["ccx", "rx", "product"])
def test_what_it_does_not_know_is_said(gate):
    angle, circuit = Parameter("a"), QuantumCircuit(3, 3)
    if gate == "ccx":
        circuit.ccx(0, 1, 2)
    elif gate == "rx":
        circuit.rx(angle, 0)
    else:
        circuit.rz(angle * angle, 0)
    circuit.measure(range(3), range(3))
    with pytest.raises(UnsupportedCircuitError):
        Trajectories(circuit, {}, {})
