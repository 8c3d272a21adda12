"""One way each to get values and per-sample weight gradients: what `benchmarks.engine` times.

A peer takes a problem and returns two functions of nothing: forward and gradient, each giving arrays `(rows, outputs)`
and `(rows, outputs, weights)`. Parity is the observable Z...Z where a peer has no read-out by bitstring: the two
probabilities are (1 +- <Z...Z>) / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CIRCUITS = ("reuploading", "zz-real-amplitudes")
LAYERS = 3


@dataclass
class Problem:
    """A circuit of one size with seeded rows and weights."""

    circuit: str
    qubits: int
    rows: int
    layers: int = LAYERS

    def __post_init__(self):
        rng = np.random.default_rng(7)
        count = 4 * self.qubits * self.layers if self.circuit == "reuploading" else 4 * self.qubits
        self.weights = rng.uniform(-np.pi, np.pi, count)
        self.inputs = rng.uniform(0, np.pi, (self.rows, self.qubits))

    def qiskit(self):
        """Circuit, input parameters, weight parameters, observables."""
        from qiskit.circuit import ParameterVector, QuantumCircuit
        from qiskit.circuit.library import real_amplitudes, zz_feature_map
        from qiskit.quantum_info import SparsePauliOp

        n = self.qubits
        circuit = QuantumCircuit(n)
        if self.circuit == "reuploading":
            x, w = ParameterVector("x", n), ParameterVector("w", len(self.weights))
            k = iter(w)
            for _ in range(self.layers):
                for q in range(n):
                    circuit.ry(next(k) * x[q] + next(k), q)
                    circuit.rz(next(k), q)
                    circuit.ry(next(k), q)
                for q in range(n):
                    circuit.cx(q, (q + 1) % n)
            observables = [SparsePauliOp.from_sparse_list([("Z", [q], 1.0)], n) for q in (0, 1)]
            return circuit, list(x), list(w), observables
        encoding, ansatz = zz_feature_map(n, reps=1), real_amplitudes(n, reps=3)
        circuit.compose(encoding, inplace=True)
        circuit.compose(ansatz, inplace=True)
        return circuit, list(encoding.parameters), list(ansatz.parameters), [SparsePauliOp("Z" * n)]


def _engine(problem: Problem):
    from llm_qfl.quantum.exact.engine import ExactEngine

    circuit, x, w, observables = problem.qiskit()
    if problem.circuit == "reuploading":
        return ExactEngine(circuit, observables, input_parameters=x, weight_parameters=w)
    parity = np.bitwise_count(np.arange(1 << problem.qubits)) & 1
    return ExactEngine(circuit, input_parameters=x, weight_parameters=w, classes=parity.astype(np.intp))


def ours(problem: Problem):
    engine, x, w = _engine(problem), problem.inputs, problem.weights
    return lambda: engine.expectations(x, w), lambda: engine.jacobian(x, w)[1]


def ours_fresh(problem: Problem):
    """Other rows at every call: no encoded state is found again."""
    engine, w = _engine(problem), problem.weights
    count = iter(range(1 << 62))

    def rows():
        return problem.inputs + 1e-13 * next(count)

    return lambda: engine.expectations(rows(), w), lambda: engine.jacobian(rows(), w)[1]


def _qiskit_ml(problem: Problem, estimator):
    from qiskit_machine_learning.gradients import ParamShiftEstimatorGradient
    from qiskit_machine_learning.neural_networks import EstimatorQNN

    circuit, x, w, observables = problem.qiskit()
    network = EstimatorQNN(
        circuit=circuit,
        observables=observables,
        input_params=x,
        weight_params=w,
        estimator=estimator,
        gradient=ParamShiftEstimatorGradient(estimator),
    )
    return (
        lambda: network.forward(problem.inputs, problem.weights),
        lambda: network.backward(problem.inputs, problem.weights)[1],
    )


def qiskit_statevector(problem: Problem):
    from qiskit.primitives import StatevectorEstimator

    return _qiskit_ml(problem, StatevectorEstimator())


def qiskit_aer(problem: Problem):
    from qiskit_aer.primitives import EstimatorV2

    return _qiskit_ml(problem, EstimatorV2(options={"default_precision": 0.0}))


def _pennylane_circuit(problem: Problem, qml):  # noqa: C901
    n = problem.qubits

    def reuploading(x, w):
        k = 0
        for _ in range(LAYERS):
            for q in range(n):
                qml.RY(w[k] * x[q] + w[k + 1], wires=q)
                qml.RZ(w[k + 2], wires=q)
                qml.RY(w[k + 3], wires=q)
                k += 4
            for q in range(n):
                qml.CNOT(wires=[q, (q + 1) % n])
        return [qml.expval(qml.PauliZ(q)) for q in (0, 1)]

    def zz(x, w):
        for q in range(n):
            qml.Hadamard(wires=q)
            qml.PhaseShift(2 * x[q], wires=q)
        for a in range(n):
            for b in range(a + 1, n):
                qml.CNOT(wires=[a, b])
                qml.PhaseShift(2 * (np.pi - x[a]) * (np.pi - x[b]), wires=b)
                qml.CNOT(wires=[a, b])
        for layer in range(4):
            for q in range(n):
                qml.RY(w[layer * n + q], wires=q)
            if layer < 3:
                for q in reversed(range(n - 1)):  # Qiskit's reverse_linear
                    qml.CNOT(wires=[q, q + 1])
        parity = qml.PauliZ(0)
        for q in range(1, n):
            parity = parity @ qml.PauliZ(q)
        return [qml.expval(parity)]

    return reuploading if problem.circuit == "reuploading" else zz


def pennylane_lightning(problem: Problem):
    """Lightning's own adjoint derivative of each row's tape, without autograd's cost for every gate."""
    import pennylane as qml
    from pennylane.devices import ExecutionConfig

    device = qml.device("lightning.qubit", wires=problem.qubits)
    config = ExecutionConfig(gradient_method="adjoint", use_device_gradient=True)
    build, w = _pennylane_circuit(problem, qml), problem.weights
    reuploading = problem.circuit == "reuploading"

    def tape(x):
        with qml.queuing.AnnotatedQueue() as queue:
            build(x, w)
        made = qml.tape.QuantumScript.from_queue(queue)
        made.trainable_params = [
            i
            for i in range(len(made.get_parameters(trainable_only=False)))
            if reuploading or isinstance(made.par_info[i]["op"], qml.RY)
        ]
        return made

    def derivative(x):
        count = len(w) * 3 // 4 if reuploading else len(w)
        angle = np.array(device.compute_derivatives(tape(x), config)).reshape(-1, count)
        if not reuploading:
            return angle
        turns = angle.reshape(-1, LAYERS, problem.qubits, 3)
        parts = [turns[..., 0] * x, turns[..., 0], turns[..., 1], turns[..., 2]]
        return np.stack(parts, axis=-1).reshape(len(angle), -1)

    def values(x):
        return np.atleast_1d(device.execute(tape(x), config))

    return (
        lambda: np.array([values(row) for row in problem.inputs]),
        lambda: np.array([derivative(row) for row in problem.inputs]),
    )


def pennylane_jax(problem: Problem):
    import jax
    import pennylane as qml

    jax.config.update("jax_enable_x64", True)
    node = qml.QNode(
        _pennylane_circuit(problem, qml),
        qml.device("default.qubit", wires=problem.qubits),
        interface="jax",
        diff_method="backprop",
    )

    def values(x, w):
        return jax.numpy.stack(node(x, w))

    forward = jax.jit(jax.vmap(values, in_axes=(0, None)))
    derivative = jax.jit(jax.vmap(jax.jacrev(values, argnums=1), in_axes=(0, None)))
    x, w = jax.numpy.array(problem.inputs), jax.numpy.array(problem.weights)
    return (
        lambda: np.asarray(forward(x, w).block_until_ready()),
        lambda: np.asarray(derivative(x, w).block_until_ready()),
    )


def qulacs(problem: Problem):  # noqa: C901
    from qulacs import Observable, ParametricQuantumCircuit, QuantumState

    n, w = problem.qubits, problem.weights
    reuploading = problem.circuit == "reuploading"
    observables = []
    for label in ["Z 0", "Z 1"] if reuploading else [" ".join(f"Z {q}" for q in range(n))]:
        observable = Observable(n)
        observable.add_operator(1.0, label)
        observables.append(observable)

    def circuit(x):
        built, k = ParametricQuantumCircuit(n), 0
        if reuploading:
            for _ in range(LAYERS):
                for q in range(n):  # Qulacs turns the other way: exp(+i angle/2 Y)
                    built.add_parametric_RY_gate(q, -(w[k] * x[q] + w[k + 1]))
                    built.add_parametric_RZ_gate(q, -w[k + 2])
                    built.add_parametric_RY_gate(q, -w[k + 3])
                    k += 4
                for q in range(n):
                    built.add_CNOT_gate(q, (q + 1) % n)
            return built
        for q in range(n):
            built.add_H_gate(q)
            built.add_U1_gate(q, 2 * x[q])
        for a in range(n):
            for b in range(a + 1, n):
                built.add_CNOT_gate(a, b)
                built.add_U1_gate(b, 2 * (np.pi - x[a]) * (np.pi - x[b]))
                built.add_CNOT_gate(a, b)
        for layer in range(4):
            for q in range(n):
                built.add_parametric_RY_gate(q, -w[layer * n + q])
            if layer < 3:
                for q in reversed(range(n - 1)):
                    built.add_CNOT_gate(q, q + 1)
        return built

    def values(x):
        state = QuantumState(n)
        circuit(x).update_quantum_state(state)
        return [o.get_expectation_value(state) for o in observables]

    def derivative(x):
        built, out = circuit(x), []
        for observable in observables:
            angle = -np.array(built.backprop(observable))
            if reuploading:
                turns = angle.reshape(LAYERS, n, 3)
                angle = np.stack([turns[..., 0] * x, turns[..., 0], turns[..., 1], turns[..., 2]], axis=-1).ravel()
            out.append(angle)
        return out

    return (
        lambda: np.array([values(x) for x in problem.inputs]),
        lambda: np.array([derivative(x) for x in problem.inputs]),
    )


PEERS: dict[str, Callable[[Problem], tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]]] = {
    "ours": ours,
    "ours, new rows": ours_fresh,
    "qiskit-ml statevector": qiskit_statevector,
    "qiskit-ml Aer": qiskit_aer,
    "PennyLane lightning": pennylane_lightning,
    "PennyLane + jax": pennylane_jax,
    "qulacs": qulacs,
}

MODULES = {
    "ours": "llm_qfl.quantum.exact.engine",
    "ours, new rows": "llm_qfl.quantum.exact.engine",
    "qiskit-ml statevector": "qiskit_machine_learning.neural_networks",
    "qiskit-ml Aer": "qiskit_aer.primitives",
    "PennyLane lightning": "pennylane_lightning.lightning_qubit",
    "PennyLane + jax": "jax",
    "qulacs": "qulacs",
}
