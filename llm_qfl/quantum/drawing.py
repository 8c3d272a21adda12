"""What a drawing of a circuit needs: its gates with angles as text, and which carry data and which are trained."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from qiskit import QuantumCircuit, qpy
from qiskit.circuit import CircuitInstruction, ParameterExpression
from qiskit.circuit.tools import pi_check
from qiskit.exceptions import QiskitError

from llm_qfl.federation.errors import RunFolderError

MOST_LETTERS = 26
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Gate:
    """One gate as it is drawn.

    Attributes:
        name: of the operation.
        qubits: wires, controls first.
        text: its angles.
        kind: `data`, `weight`, `mixed` or `fixed`.
    """

    name: str
    qubits: tuple[int, ...]
    text: str
    kind: str

    @property
    def label(self) -> str:
        """The angles, cut where they are too long."""
        return self.text if len(self.text) <= MOST_LETTERS else self.text[: MOST_LETTERS - 1] + "…"

    @property
    def width(self) -> float:
        """Pixels."""
        if self.name in ("cx", "cz", "swap", "barrier"):
            return 22.0
        return max(34.0, 6.2 * len(self.label) + 10, 9.0 * len(self.name) + 10)


def load_circuit(path: Path) -> QuantumCircuit:
    """The circuit of a model folder, one level of composite gates opened.

    Raises:
        RunFolderError: not a QPY file.
    """
    try:
        with open(path, "rb") as file:
            loaded = qpy.load(file)
    except (OSError, EOFError, QiskitError, ValueError, struct.error) as error:
        raise RunFolderError(f"{path}: not a circuit ({error}); run again or restore the folder") from error
    circuit: QuantumCircuit = loaded[0]
    # Library circuits (ZZFeatureMap, RealAmplitudes) sit inside as one block.
    blocks = {item.operation.name for item in circuit.data if len(item.operation.params) > 3}
    return circuit.decompose(gates_to_decompose=sorted(blocks)) if blocks else circuit


def read_gate(circuit: QuantumCircuit, item: CircuitInstruction) -> Gate | None:
    """An instruction as it is drawn; measurements are left out."""
    if item.operation.name == "measure":
        return None
    qubits = tuple(circuit.find_bit(qubit).index for qubit in item.qubits)
    parameters = {
        parameter.name
        for p in item.operation.params
        if isinstance(p, ParameterExpression)
        for parameter in p.parameters
    }
    data = {name for name in parameters if is_input(name)}
    kind = "fixed" if not parameters else "mixed" if data and parameters - data else "data" if data else "weight"
    text = ", ".join(_angle(p) for p in item.operation.params)
    return Gate(item.operation.name, qubits, text, kind)


def is_input(name: str) -> bool:
    """Does a parameter carry a feature? Inputs are called `x[...]`, weights otherwise."""
    return name.partition("[")[0] == "x"


def _angle(value: object) -> str:
    """An angle in few letters: numbers as multiples of pi where they are."""
    text: str = pi_check(value, ndigits=3, output="text")
    for old, new in (("theta", "θ"), ("pi", "π"), ("[", ""), ("]", ""), ("*", "·"), (" ", ""), ("-", MINUS)):
        text = text.replace(old, new)
    return text
