"""Encodings and ansatz -> one circuit, its input and weight parameters, and what is read.

- `reuploading` (Perez-Salinas et al. 2020): per layer RY(w x + b), RZ, RY on every qubit and a ring of CX.
- `zz-real-amplitudes`: ZZFeatureMap (one repetition) and RealAmplitudes, the variational classifier of LLM-QFL.
- `qcnn` (Cong et al. 2019): ZFeatureMap, then convolution and pooling 4 -> 2 -> 1, read on the last qubit. The
  published code pools into qubits that are never read; here every weight has an effect.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from qiskit.circuit import Parameter, ParameterExpression, ParameterVector, QuantumCircuit
from qiskit.circuit.library import real_amplitudes, z_feature_map, zz_feature_map
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import CircuitError


@dataclass(frozen=True, eq=False)
class ModelCircuit:
    """A circuit with its parameters and observables.

    Attributes:
        name: as in `quantum.circuit`.
        circuit: without measurements.
        input_parameters: D, in the order of the features.
        weight_parameters: in the order of theta.
        observables: K; an observable per class, or per qubit for a linear readout.
    """

    name: str
    circuit: QuantumCircuit
    input_parameters: tuple[Parameter, ...]
    weight_parameters: tuple[Parameter, ...]
    observables: tuple[SparsePauliOp, ...]

    @cached_property
    def gates(self) -> int:
        """G: parametrised gates that depend on weights; a gradient costs 2G+1 evaluations by the shift rule."""
        weights = set(self.weight_parameters)
        return sum(
            any(isinstance(p, ParameterExpression) and weights & set(p.parameters) for p in step.operation.params)
            for step in self.circuit.data
        )

    def digest(self) -> str:
        """By structure: gates, qubits, parameter expressions, observables. Equal in every process."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        lines = [f"qubits {self.circuit.num_qubits}"]
        for step in self.circuit.data:
            qubits = [self.circuit.find_bit(bit).index for bit in step.qubits]
            lines.append(f"{step.operation.name} {qubits} {[str(p) for p in step.operation.params]}")
        lines.append(f"inputs {[p.name for p in self.input_parameters]}")
        lines.append(f"weights {[p.name for p in self.weight_parameters]}")
        lines += [str([(label, complex(c)) for label, c in op.to_list()]) for op in self.observables]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def build_circuit(config: QuantumConfig, classes: int) -> ModelCircuit:
    """The configured circuit, read for this many classes.

    Raises:
        CircuitError: the circuit or readout cannot serve that many classes.
    """
    makers = {"reuploading": _reuploading, "zz-real-amplitudes": _zz_real_amplitudes, "qcnn": _qcnn}
    circuit, inputs, weights, read = makers[config.circuit](config)
    observables = _observables(config.readout, config.qubits, read, classes)
    return ModelCircuit(config.circuit, circuit, inputs, weights, observables)


_Parts = tuple[QuantumCircuit, tuple[Parameter, ...], tuple[Parameter, ...], tuple[int, ...]]


def _reuploading(config: QuantumConfig) -> _Parts:
    n, layers = config.qubits, config.layers
    x, theta = ParameterVector("x", n), ParameterVector("theta", 4 * n * layers)
    circuit = QuantumCircuit(n, name="reuploading")
    for layer in range(layers):
        for qubit in range(n):
            scale, bias, turn, tilt = theta[4 * (layer * n + qubit) : 4 * (layer * n + qubit) + 4]
            circuit.ry(scale * x[qubit] + bias, qubit)
            circuit.rz(turn, qubit)
            circuit.ry(tilt, qubit)
        for qubit in range(n):
            circuit.cx(qubit, (qubit + 1) % n)
    return circuit, tuple(x), tuple(theta), tuple(range(n))


def _zz_real_amplitudes(config: QuantumConfig) -> _Parts:
    n = config.qubits
    if n < 2:
        raise CircuitError("zz-real-amplitudes: the encoding takes pairs of qubits, expected at least 2, got 1")
    encoding = _paper_range(zz_feature_map(n, reps=1, parameter_prefix="x"))
    ansatz = real_amplitudes(n, reps=config.layers, parameter_prefix="theta")
    circuit = encoding.compose(ansatz)
    circuit.name = "zz-real-amplitudes"
    return circuit, tuple(encoding.parameters), tuple(ansatz.parameters), tuple(range(n))


def _qcnn(config: QuantumConfig) -> _Parts:
    encoding = _paper_range(z_feature_map(4, reps=2, parameter_prefix="x"))
    theta = ParameterVector("theta", 24)
    circuit = encoding.copy(name="qcnn")
    convolutions = [(0, 1), (2, 3), (1, 2), (3, 0)]  # 4 qubits: every pair of neighbours on the ring
    for block, (a, b) in enumerate(convolutions):
        _convolve(circuit, theta[3 * block : 3 * block + 3], a, b)
    _pool(circuit, theta[12:15], 0, 1)
    _pool(circuit, theta[15:18], 2, 3)
    _convolve(circuit, theta[18:21], 1, 3)
    _pool(circuit, theta[21:24], 1, 3)
    return circuit, tuple(encoding.parameters), tuple(theta), (3,)


def _paper_range(encoding: QuantumCircuit) -> QuantumCircuit:
    """Features in [-pi, pi] enter as x/(2 pi) + 1/2, in [0, 1], where the published code's MinMax scaling puts them.

    These encodings have no trainable scale. Over +-pi the phases of ZZFeatureMap turn many times and nothing is
    learned: one run on 4-mer principal components gave .52 test accuracy, this range .78.
    """
    scaled: QuantumCircuit = encoding.assign_parameters({x: x / (2 * np.pi) + 0.5 for x in encoding.parameters})
    return scaled


def _convolve(circuit: QuantumCircuit, theta: list[Parameter], a: int, b: int) -> None:
    """A two-qubit block with three weights (Vatan and Williams 2004)."""
    circuit.rz(-np.pi / 2, b)
    circuit.cx(b, a)
    circuit.rz(theta[0], a)
    circuit.ry(theta[1], b)
    circuit.cx(a, b)
    circuit.ry(theta[2], b)
    circuit.cx(b, a)
    circuit.rz(np.pi / 2, a)


def _pool(circuit: QuantumCircuit, theta: list[Parameter], source: int, sink: int) -> None:
    """Move what `source` knows into `sink`; `source` is not used again.

    RY, not RZ, before the control: an RZ there commutes with the CX and would be a dead weight.
    """
    circuit.ry(theta[0], source)
    circuit.ry(theta[1], sink)
    circuit.cx(source, sink)
    circuit.ry(theta[2], sink)


def _observables(readout: str, qubits: int, read: tuple[int, ...], classes: int) -> tuple[SparsePauliOp, ...]:
    def z(*on: int) -> SparsePauliOp:
        return SparsePauliOp.from_sparse_list([("Z" * len(on), list(on), 1.0)], num_qubits=qubits)

    identity = SparsePauliOp.from_sparse_list([("", [], 1.0)], num_qubits=qubits)
    if readout in ("scale", "scale-bias"):
        if len(read) == 1 and classes == 2:
            return z(read[0]), (-1.0 * z(read[0]))
        if classes > len(read):
            raise CircuitError(
                f"readout {readout}: needs a qubit for every class, got {classes} classes and {len(read)} read qubits; "
                "take more qubits or the readout linear"
            )
        return tuple(z(read[c]) for c in range(classes))
    if readout == "linear":
        return tuple(z(qubit) for qubit in read)
    if readout == "parity":
        if classes != 2:
            raise CircuitError(f"readout parity: tells 2 classes apart, got {classes}")
        together = z(*read)
        return ((identity + together) * 0.5).simplify(), ((identity - together) * 0.5).simplify()
    if classes > 2 ** len(read):
        raise CircuitError(f"readout bit: {classes} classes, expected at most {2 ** len(read)}")
    return tuple(_projector(qubits, read, classes, c) for c in range(classes))


def _projector(qubits: int, read: tuple[int, ...], classes: int, wanted: int) -> SparsePauliOp:
    """Onto the integers (of the read qubits) that are `wanted` modulo the number of classes, as Z strings.

    The coefficient of a Z string is the Walsh-Hadamard transform of the indicator of those integers.
    """
    values = (np.arange(2 ** len(read)) % classes == wanted).astype(float)
    for bit in range(len(read)):
        pairs = values.reshape(-1, 2, 2**bit)
        values = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1) / 2
    terms = []
    for mask in np.flatnonzero(np.abs(values) > 1e-12):
        on = [read[bit] for bit in range(len(read)) if mask >> bit & 1]
        terms.append(("Z" * len(on), on, float(values[mask])))
    return SparsePauliOp.from_sparse_list(terms, num_qubits=qubits)
