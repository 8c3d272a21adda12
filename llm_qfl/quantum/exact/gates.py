"""From Qiskit instructions to elementary gates: rotations, constant 2x2 gates, parity phases, CX and SWAP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Barrier, ControlFlowOp, Gate, Measure, ParameterExpression, QuantumCircuit, Reset
from qiskit.circuit.exceptions import CircuitError as QiskitCircuitError

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact.expressions import ExpressionTable, Polynomial, scaled
from llm_qfl.quantum.exact.schedule import Schedule, X, Y, Z

Number: TypeAlias = ParameterExpression | float
Rule: TypeAlias = Callable[["Reader", Sequence[Number], Sequence[int]], None]

_TOLERANCE = 1e-9
_MAX_DEPTH = 64
_HADAMARD = np.array([0.0, sqrt(0.5), 0.0, sqrt(0.5)])


class Reader:
    """Feeds a circuit, gate by gate, to a schedule.

    `global_phase` collects the phase in radians as a list of polynomials, to be summed.
    """

    def __init__(self, table: ExpressionTable, schedule: Schedule, weighted_values: set[int]) -> None:
        self.schedule = schedule
        self.global_phase: list[Polynomial] = []
        self._table = table
        self._weighted_values = weighted_values
        self._measured: set[int] = set()

    def read(self, circuit: QuantumCircuit) -> None:
        """The whole circuit.

        Raises:
            CircuitError: an instruction is not a unitary gate, or an angle cannot be read.
        """
        self._circuit(circuit, list(range(circuit.num_qubits)), 0)

    def angle(self, expression: Number) -> Polynomial:
        """The polynomial of an angle; notes which functions depend on a weight."""
        polynomial = self._table.read(expression)
        first = 1 + self._table.num_weights + self._table.num_inputs
        for i, function in enumerate(self._table.functions):
            if function.of_weights:
                self._weighted_values.add(first + i)
        return polynomial

    def phase(self, expression: Number, factor: float = 1.0) -> None:
        """Add to the global phase."""
        self.global_phase.append(scaled(self.angle(expression), factor))

    def rotate(self, axis: int, expression: Number, qubit: int, factor: float = 1.0) -> None:
        """A rotation by `factor * expression`."""
        self.schedule.rotation(axis, qubit, scaled(self.angle(expression), factor))

    def parity(self, expression: Number, qubits: Sequence[int], factor: float = 1.0) -> None:
        """`exp(-i factor expression/2 Z...Z)`."""
        self.schedule.phase(tuple(qubits), scaled(self.angle(expression), factor))

    def matrix(self, matrix: NDArray[np.complex128], qubit: int) -> None:
        """A constant 2x2 unitary."""
        if not np.allclose(matrix @ matrix.conj().T, np.eye(2), atol=_TOLERANCE):
            raise CircuitError(f"a gate's matrix on qubit {qubit} is not unitary")
        phase = np.angle(np.linalg.det(matrix)) / 2
        special = matrix * np.exp(-1j * phase)
        self.phase(float(phase))
        a, b = special[0, 0], special[1, 0]
        self.schedule.fixed(qubit, np.array([a.real, -b.imag, b.real, -a.imag]))

    def _circuit(self, circuit: QuantumCircuit, qubits: list[int], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise CircuitError(f"the definition of a gate in {circuit.name!r} is nested more than {_MAX_DEPTH} deep")
        self.phase(circuit.global_phase)
        positions = {bit: qubits[i] for i, bit in enumerate(circuit.qubits)}
        for instruction in circuit.data:
            self._instruction(instruction.operation, [positions[bit] for bit in instruction.qubits], depth)

    def _instruction(self, operation: object, qubits: list[int], depth: int) -> None:
        if isinstance(operation, Barrier):
            return
        if isinstance(operation, Measure):
            self._measured.update(qubits)
            return
        name = getattr(operation, "name", type(operation).__name__)
        if isinstance(operation, Reset | ControlFlowOp) or getattr(operation, "condition", None) is not None:
            raise CircuitError(
                f"instruction {name!r} is no unitary gate: the exact engine takes gates, barriers "
                "and final measurements; remove it or run the circuit on an Aer or IBM backend"
            )
        if self._measured.intersection(qubits):
            raise CircuitError(
                f"gate {name!r} acts on qubit(s) {qubits} after a measurement: only final measurements "
                "can be simulated exactly; move the measurement to the end"
            )
        rule = RULES.get((getattr(operation, "base_class", type(operation)).__name__, name))
        if rule is not None and isinstance(operation, Gate):
            rule(self, operation.params, qubits)
            return
        self._decompose(operation, name, qubits, depth)

    def _decompose(self, operation: object, name: str, qubits: list[int], depth: int) -> None:
        if getattr(operation, "num_clbits", 0):
            raise CircuitError(f"instruction {name!r} uses classical bits: the exact engine takes unitary gates only")
        bound = not any(isinstance(p, ParameterExpression) and p.parameters for p in getattr(operation, "params", []))
        if isinstance(operation, Gate) and operation.num_qubits == 1 and bound:
            try:
                self.matrix(np.asarray(operation.to_matrix(), dtype=np.complex128), qubits[0])
                return
            except QiskitCircuitError:  # no matrix of its own: its definition says what it does
                pass
        definition = getattr(operation, "definition", None)
        self._circuit(definition if definition is not None else _synthesised(operation, name), qubits, depth + 1)


def _synthesised(operation: object, name: str) -> QuantumCircuit:
    """A circuit for an operation that has no definition: Clifford, annotated operation, gate with a matrix only."""
    from qiskit.circuit.library import UnitaryGate
    from qiskit.exceptions import QiskitError
    from qiskit.transpiler.passes import HighLevelSynthesis

    if isinstance(operation, Gate):
        try:
            definition: QuantumCircuit | None = UnitaryGate(operation.to_matrix()).definition
            if definition is not None:
                return definition
        except (QiskitError, TypeError) as error:
            raise CircuitError(f"gate {name!r} has neither a definition nor a matrix: {error}") from error
    single = QuantumCircuit(operation.num_qubits)  # type: ignore[attr-defined]
    single.append(operation, range(operation.num_qubits))  # type: ignore[attr-defined]
    try:
        done: QuantumCircuit = HighLevelSynthesis()(single)
    except QiskitError as error:
        raise CircuitError(f"instruction {name!r} cannot be written as unitary gates: {error}") from error
    if any(item.operation.name == name for item in done.data):
        raise CircuitError(f"instruction {name!r} is no unitary gate that can be simulated exactly")
    return done


def _rotation(axis: int) -> Rule:
    return lambda reader, params, qubits: reader.rotate(axis, params[0], qubits[0])


def _constant_phase(angle: float) -> Rule:
    """diag(1, exp(i angle))."""
    return lambda reader, params, qubits: _phase_gate(reader, [angle], qubits)


def _phase_gate(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
    reader.phase(params[0], 0.5)
    reader.rotate(Z, params[0], qubits[0])


def _controlled_phase(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
    """Angle on |11>: a b = (a + b - a^b) / 2."""
    reader.phase(params[0], 0.25)
    for q in qubits:
        reader.rotate(Z, params[0], q, 0.5)
    reader.parity(params[0], qubits, -0.5)


def _controlled_rz(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
    reader.rotate(Z, params[0], qubits[1], 0.5)
    reader.parity(params[0], qubits, -0.5)


def _u(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
    theta, phi, lam = params
    reader.phase(phi, 0.5)
    reader.phase(lam, 0.5)
    reader.rotate(Z, lam, qubits[0])
    reader.rotate(Y, theta, qubits[0])
    reader.rotate(Z, phi, qubits[0])


def _r(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
    theta, phi = params
    reader.rotate(Z, phi, qubits[0], -1.0)
    reader.rotate(X, theta, qubits[0])
    reader.rotate(Z, phi, qubits[0])


def _hadamard(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
    reader.phase(pi / 2)
    reader.schedule.fixed(qubits[0], _HADAMARD)


def _y(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
    reader.phase(pi)  # Y = i X Z and Z = i RZ(pi)
    reader.rotate(Z, pi, qubits[0])
    reader.schedule.frame.flip(qubits[0])


def _root_of_x(sign: float) -> Rule:
    def rule(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
        reader.phase(sign * pi / 4)
        reader.rotate(X, sign * pi / 2, qubits[0])

    return rule


def _nothing(reader: Reader, params: Sequence[Number], qubits: Sequence[int]) -> None:
    pass


RULES: dict[tuple[str, str], Rule] = {
    ("IGate", "id"): _nothing,
    ("GlobalPhaseGate", "global_phase"): lambda reader, params, qubits: reader.phase(params[0]),
    ("RXGate", "rx"): _rotation(X),
    ("RYGate", "ry"): _rotation(Y),
    ("RZGate", "rz"): _rotation(Z),
    ("RGate", "r"): _r,
    ("UGate", "u"): _u,
    ("U3Gate", "u3"): _u,
    ("U2Gate", "u2"): lambda reader, params, qubits: _u(reader, [pi / 2, *params], qubits),
    ("U1Gate", "u1"): _phase_gate,
    ("PhaseGate", "p"): _phase_gate,
    ("ZGate", "z"): _constant_phase(pi),
    ("SGate", "s"): _constant_phase(pi / 2),
    ("SdgGate", "sdg"): _constant_phase(-pi / 2),
    ("TGate", "t"): _constant_phase(pi / 4),
    ("TdgGate", "tdg"): _constant_phase(-pi / 4),
    ("HGate", "h"): _hadamard,
    ("XGate", "x"): lambda reader, params, qubits: reader.schedule.frame.flip(qubits[0]),
    ("YGate", "y"): _y,
    ("SXGate", "sx"): _root_of_x(1.0),
    ("SXdgGate", "sxdg"): _root_of_x(-1.0),
    ("CXGate", "cx"): lambda reader, params, qubits: reader.schedule.frame.cx(*qubits),
    ("SwapGate", "swap"): lambda reader, params, qubits: reader.schedule.frame.swap(*qubits),
    ("CZGate", "cz"): lambda reader, params, qubits: _controlled_phase(reader, [pi], qubits),
    ("CPhaseGate", "cp"): _controlled_phase,
    ("CU1Gate", "cu1"): _controlled_phase,
    ("CRZGate", "crz"): _controlled_rz,
    ("RZZGate", "rzz"): lambda reader, params, qubits: reader.parity(params[0], qubits),
}
