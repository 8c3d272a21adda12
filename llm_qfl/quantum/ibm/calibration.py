"""The calibration of the physical qubits that a circuit was put on."""

from __future__ import annotations

import math
from typing import Any

from qiskit.circuit import QuantumCircuit


def calibration_key(device: Any) -> str:  # noqa: ANN401
    """Names a device and its calibration, for circuits transpiled for both."""
    return f"{device.name} {calibrated_at(device)}"


def calibrated_at(device: Any) -> str:  # noqa: ANN401
    """When the device was calibrated last, in ISO 8601, or `unknown`."""
    properties = device.properties()
    moment = getattr(properties, "last_update_date", None)
    return "unknown" if moment is None else str(moment.isoformat())


def calibration_of(device: Any, isa: QuantumCircuit) -> dict[str, Any]:  # noqa: ANN401
    """What the ledger keeps: qubits with T1, T2 (seconds) and read-out error, and errors of their two-qubit gates.

    Args:
        device: with a target.
        isa: transpiled for it.
    """
    target = device.target
    chosen = isa.layout.final_index_layout() if isa.layout is not None else list(range(isa.num_qubits))
    pairs = {
        (step.operation.name, tuple(isa.find_bit(bit).index for bit in step.qubits))
        for step in isa.data
        if len(step.qubits) == 2 and step.operation.name in target.operation_names
    }
    used = sorted({*chosen, *(qubit for _, pair in pairs for qubit in pair)})
    qubits = {}
    for qubit in used:
        about = None if target.qubit_properties is None else target.qubit_properties[qubit]
        qubits[str(qubit)] = {
            "t1": _number(getattr(about, "t1", None)),
            "t2": _number(getattr(about, "t2", None)),
            "readout_error": _error(target, "measure", (qubit,)),
        }
    gates = {f"{name} {pair[0]}-{pair[1]}": _error(target, name, pair) for name, pair in sorted(pairs)}
    return {"time": calibrated_at(device), "layout": list(chosen), "qubits": qubits, "two_qubit_errors": gates}


def _error(target: Any, name: str, qubits: tuple[int, ...]) -> float | None:  # noqa: ANN401
    if name not in target.operation_names or target[name] is None:
        return None
    return _number(getattr(target[name].get(qubits), "error", None))


def _number(value: Any) -> float | None:  # noqa: ANN401
    return None if value is None or not math.isfinite(value) else float(value)
