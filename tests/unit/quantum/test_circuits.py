import hashlib
import subprocess
import sys

import numpy as np
import pytest
from qiskit.quantum_info import Statevector

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.config_checks import readout_problems
from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.backends import make_backend
from llm_qfl.quantum.circuits import build_circuit

CIRCUITS = ("reuploading", "zz-real-amplitudes", "qcnn")
READOUTS = ("scale", "scale-bias", "linear", "parity", "bit")


def bound(model_circuit, x, weights):
    values = dict(zip(model_circuit.input_parameters, x, strict=True))
    values |= dict(zip(model_circuit.weight_parameters, weights, strict=True))
    return Statevector(model_circuit.circuit.assign_parameters(values))


@pytest.mark.parametrize(
    ("config", "parameters", "gates"),
    [
        (QuantumConfig(qubits=4, layers=3), 48, 36),
        (QuantumConfig(qubits=2, layers=1), 8, 6),
        (QuantumConfig(circuit="zz-real-amplitudes", qubits=4, layers=3), 16, 16),
        (QuantumConfig(circuit="qcnn"), 24, 24),
    ],
)
def test_counts(config, parameters, gates):
    made = build_circuit(config, 2)
    assert len(made.weight_parameters) == parameters
    assert made.gates == gates  # RY(w x + b) is one gate that hardware shifts, with two weights
    assert len(made.input_parameters) == config.qubits == made.circuit.num_qubits
    assert [p.name for p in made.input_parameters] == [f"x[{i}]" for i in range(config.qubits)]
    assert [p.name for p in made.weight_parameters] == [f"theta[{i}]" for i in range(parameters)]


def test_a_reuploading_layer_is_what_it_says():
    made = build_circuit(QuantumConfig(qubits=2, layers=1), 2)
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=2), rng.normal(size=8)
    state = np.array([1.0, 0, 0, 0], complex).reshape(2, 2)  # axes: qubit 1, qubit 0

    def ry(a):
        return np.array([[np.cos(a / 2), -np.sin(a / 2)], [np.sin(a / 2), np.cos(a / 2)]])

    def rz(a):
        return np.diag(np.exp([-0.5j * a, 0.5j * a]))

    gates = [ry(tilt) @ rz(turn) @ ry(w * x[q] + b) for q, (w, b, turn, tilt) in enumerate(weights.reshape(2, 4))]
    state = gates[1] @ state @ gates[0].T
    state[:, 1] = state[::-1, 1].copy()  # CX 0 -> 1
    state[1, :] = state[1, ::-1].copy()  # CX 1 -> 0
    np.testing.assert_allclose(bound(made, x, weights).data, state.reshape(-1), atol=1e-12)


def test_zz_real_amplitudes_is_the_papers_setting():
    from qiskit.circuit.library import real_amplitudes, zz_feature_map

    made = build_circuit(QuantumConfig(circuit="zz-real-amplitudes", qubits=4, layers=3), 2)
    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=4), rng.normal(size=16)
    # features of +-pi enter where MinMax scaling puts the paper's: in [0, 1]
    encoded = zz_feature_map(4, reps=1).assign_parameters(x / (2 * np.pi) + 0.5)
    paper = encoded.compose(real_amplitudes(4, reps=3).assign_parameters(weights))
    np.testing.assert_allclose(bound(made, x, weights).data, Statevector(paper).data, atol=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        *(QuantumConfig(circuit="qcnn", readout=readout) for readout in READOUTS),
        QuantumConfig(readout="scale"),
        QuantumConfig(qubits=3, layers=2, readout="scale"),
        QuantumConfig(readout="linear"),
        QuantumConfig(circuit="zz-real-amplitudes", readout="linear"),
        QuantumConfig(circuit="zz-real-amplitudes", readout="parity"),
    ],
    ids=lambda config: f"{config.circuit}-{config.qubits}-{config.readout}",
)
def test_no_dead_weights(config):
    made = build_circuit(config, 2)
    rng = np.random.default_rng(2)
    weights = rng.uniform(-np.pi, np.pi, len(made.weight_parameters))
    _, slopes = make_backend(QuantumConfig(), made).jacobian(rng.normal(size=(5, config.qubits)), weights)
    effect = np.abs(slopes).max(axis=(0, 1))
    assert effect.min() > 1e-4, np.flatnonzero(effect <= 1e-4)


def test_outputs_differ_across_classes_and_follow_their_inputs():
    made = build_circuit(QuantumConfig(readout="scale"), 3)
    rng = np.random.default_rng(3)
    weights, x = rng.normal(size=48), rng.normal(size=4)
    values = [bound(made, x, weights).expectation_value(op).real for op in made.observables]
    assert np.min(np.abs(np.subtract.outer(values, values))[~np.eye(3, dtype=bool)]) > 1e-3
    for permuted in (np.roll(x, 1), x[::-1]):
        other = [bound(made, permuted, weights).expectation_value(op).real for op in made.observables]
        assert np.abs(np.subtract(other, values)).max() > 1e-3


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 7])
def test_bit_projects_onto_the_integer_modulo_the_classes(classes):
    made = build_circuit(QuantumConfig(readout="bit", qubits=3, layers=1), classes)
    for c, op in enumerate(made.observables):
        expected = np.diag((np.arange(8) % classes == c).astype(complex))
        np.testing.assert_allclose(op.to_matrix(), expected, atol=1e-12)


def test_parity_is_even_or_odd():
    made = build_circuit(QuantumConfig(readout="parity", qubits=3, layers=1), 2)
    odd = np.array([bin(i).count("1") % 2 for i in range(8)])
    for c, op in enumerate(made.observables):
        np.testing.assert_allclose(op.to_matrix(), np.diag((odd == c).astype(complex)), atol=1e-12)


def test_the_qcnn_reads_its_last_qubit_alone():
    for readout in READOUTS:
        made = build_circuit(QuantumConfig(circuit="qcnn", readout=readout), 2)
        for op in made.observables:
            assert all(set(label[1:]) <= {"I"} for label in op.paulis.to_labels())


def test_circuit_and_config_agree_on_what_a_readout_can_tell_apart():
    for circuit in CIRCUITS:
        for readout in READOUTS:
            for classes in (2, 3, 4, 5, 17):
                config = QuantumConfig(circuit=circuit, readout=readout)
                if readout_problems(config, classes):
                    with pytest.raises(CircuitError, match=readout):
                        build_circuit(config, classes)
                else:
                    build_circuit(config, classes)


def test_one_qubit_has_no_pairs():
    with pytest.raises(CircuitError, match="at least 2, got 1"):
        build_circuit(QuantumConfig(circuit="zz-real-amplitudes", qubits=1), 2)


def test_digest_tells_structures_apart_and_nothing_else():
    digests = [
        build_circuit(QuantumConfig(circuit=circuit, readout=readout), 2).digest()
        for circuit in CIRCUITS
        for readout in READOUTS
        if readout != "scale-bias" and (circuit, readout) != ("qcnn", "bit")  # read what scale and parity read
    ]
    others = [({"layers": 2}, 2), ({"qubits": 5}, 2), ({}, 3)]
    digests += [build_circuit(QuantumConfig(readout="scale", **more), c).digest() for more, c in others]
    assert len(set(digests)) == len(digests)
    again = build_circuit(QuantumConfig(readout="scale"), 2)
    again.circuit.name = "another"
    again.circuit.metadata = {"made": "elsewhere"}
    assert again.digest() == digests[0]


def test_digest_is_the_same_in_another_process():
    code = (
        "from llm_qfl.quantum.circuits import build_circuit; from llm_qfl.federation.config import QuantumConfig;"
        "print(*(build_circuit(QuantumConfig(circuit=c), 2).digest() for c in "
        f"{CIRCUITS!r}))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    here = [build_circuit(QuantumConfig(circuit=circuit), 2).digest() for circuit in CIRCUITS]
    assert told.stdout.split() == here
    assert len(here[0]) == hashlib.sha256().digest_size * 2
