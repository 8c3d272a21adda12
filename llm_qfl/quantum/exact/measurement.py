"""Final measurements: where each classical bit gets its value, and the circuit without them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import ClassicalRegister, QuantumCircuit, QuantumRegister

from llm_qfl.federation.errors import CircuitError

INDEX = NDArray[np.int64]
UNMEASURED = -1


@dataclass(frozen=True)
class Register:
    """A classical register.

    Args:
        name: its name.
        qubits: the qubit measured into each bit, lowest bit first; `UNMEASURED` where none is (the bit reads 0).
    """

    name: str
    qubits: tuple[int, ...]

    @property
    def num_bits(self) -> int:
        """Bits of the register."""
        return len(self.qubits)


def without_measurements(circuit: QuantumCircuit) -> QuantumCircuit:
    """The circuit without its final measurements; its parameters are the same objects.

    Raises:
        CircuitError: a measurement is left, since something follows it.
    """
    bare = circuit.remove_final_measurements(inplace=False) if circuit.num_clbits else circuit
    for item in bare.data:
        if item.operation.name == "measure":
            raise CircuitError(
                f"circuit {circuit.name!r} measures qubit {bare.find_bit(item.qubits[0]).index} and goes on with it: "
                "exact simulation takes measurements at the end only; remove it or use Aer"
            )
    return bare


def registers(circuit: QuantumCircuit) -> list[Register]:
    """The classical registers of a circuit with the qubits that its final measurements put there."""
    source = _measured_qubits(circuit)
    return [
        Register(register.name, tuple(source.get(circuit.find_bit(bit).index, UNMEASURED) for bit in register))
        for register in circuit.cregs
    ]


def _measured_qubits(circuit: QuantumCircuit) -> dict[int, int]:
    """Qubit behind each classical bit; from the end, so that the last measurement of a bit wins."""
    source: dict[int, int] = {}
    touched: set[int] = set()
    for item in reversed(circuit.data):
        qubits = [circuit.find_bit(q).index for q in item.qubits]
        if item.operation.name == "measure":
            bit = circuit.find_bit(item.clbits[0]).index
            if qubits[0] not in touched:
                source.setdefault(bit, qubits[0])
        elif item.operation.name not in ("barrier", "delay"):
            touched.update(qubits)
    return source


def network_readout(circuit: QuantumCircuit) -> tuple[int, ...]:
    """The qubits whose bits make the integers that `SamplerQNN` interprets, lowest bit first.

    All qubits where nothing is measured (in the order before transpilation, where the circuit was transpiled); else
    the register `meas`, else all registers, the first one lowest. A bit that is not measured does not count.

    Raises:
        CircuitError: the circuit has classical bits, but nothing is measured into the registers that count.
    """
    if not circuit.clbits:
        if circuit.layout is None:
            return tuple(range(circuit.num_qubits))
        return tuple(circuit.layout.final_index_layout(filter_ancillas=True))
    places = registers(circuit)
    chosen = [place for place in places if place.name == "meas"] or places
    qubits = tuple(qubit for place in chosen for qubit in place.qubits if qubit != UNMEASURED)
    if not qubits:
        raise CircuitError(
            f"circuit {circuit.name!r} has classical bits, but no final measurement into its registers: add the "
            "measurements, or remove the classical bits to have all qubits measured"
        )
    return qubits


def remeasured(bare: QuantumCircuit, qubits: tuple[int, ...]) -> QuantumCircuit:
    """A circuit without measurements, with `qubits` measured into one register `meas`."""
    out = QuantumCircuit(QuantumRegister(bare.num_qubits, "q"), ClassicalRegister(len(qubits), "meas"))
    out.global_phase = bare.global_phase
    for item in bare.data:
        out.append(item.operation, [bare.find_bit(q).index for q in item.qubits])
    out.measure(qubits, range(len(qubits)))
    return out


def measured_keys(qubits: tuple[int, ...], num_qubits: int) -> INDEX:
    """The integer measured in every basis state, shape `(2**num_qubits,)`; its bit i is that of `qubits[i]`."""
    states = np.arange(2**num_qubits, dtype=np.int64)
    keys = np.zeros_like(states)
    for bit, qubit in enumerate(qubits):
        keys |= (states >> qubit & 1) << bit
    return keys
