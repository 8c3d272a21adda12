"""Small work for the tests of IBM jobs, and what it should give."""

from __future__ import annotations

import numpy as np
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp, Statevector

from llm_qfl.quantum.ibm.work import Step, Work

STEP = Step("run-1", "site-a", 3, "train/0")


def small_work(rows=3, seed=0, qubits=2):
    angles = ParameterVector("a", qubits)
    circuit = QuantumCircuit(qubits)
    for qubit in range(qubits):
        circuit.ry(angles[qubit], qubit)
    for qubit in range(qubits - 1):
        circuit.cx(qubit, qubit + 1)
    observables = (SparsePauliOp("I" * (qubits - 1) + "Z"), SparsePauliOp(["Z" * qubits, "I" * qubits], [0.5, 0.25]))
    points = np.random.default_rng(seed).uniform(-2, 2, (rows, qubits))
    return Work(f"small-{qubits}", circuit, tuple(angles), points, observables)


def exact(work):
    """(N, K) by Qiskit's state vectors."""
    out = []
    for point in work.points:
        state = Statevector(work.circuit.assign_parameters(dict(zip(work.parameters, point, strict=True))))
        out.append([state.expectation_value(operator).real for operator in work.observables])
    return np.array(out)
