"""Transpiled once for a circuit and a device, and kept: in this process and on the node's disk, by content."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import qiskit
from qiskit import qpy
from qiskit.circuit import QuantumCircuit

_KEPT: dict[str, QuantumCircuit] = {}
_LIMIT = 64


class IsaCache:
    """Circuits in a device's instruction set.

    Args:
        folder: on the node's disk; made when the first circuit is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(
        self,
        circuit: QuantumCircuit,
        digest: str,
        backend: Any,  # noqa: ANN401
        *,
        key: str,
        optimization_level: int,
        seed: int,
    ) -> QuantumCircuit:
        """The circuit for this device: kept, or transpiled now. Qubits are chosen by the device's calibration.

        Args:
            circuit: logical, composed whole.
            digest: of the circuit by structure.
            backend: a Qiskit backend.
            key: names device and calibration: the same key must mean the same target.
            optimization_level: of the transpiler.
            seed: of the transpiler.
        """
        parts = [digest, key, optimization_level, seed, qiskit.__version__]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        if name in _KEPT:
            return _KEPT[name]
        path = self._folder / f"{name}.qpy"
        found = _read(path)
        if found is None:
            from qiskit.transpiler import generate_preset_pass_manager

            manager = generate_preset_pass_manager(optimization_level, backend=backend, seed_transpiler=seed)
            found = manager.run(circuit)
            _write(path, found)
        while len(_KEPT) >= _LIMIT:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[name] = found
        return found


def _read(path: Path) -> QuantumCircuit | None:
    """None where there is no file, or one that was cut short: it is written anew."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != head:
        return None
    circuit: QuantumCircuit = qpy.load(io.BytesIO(body))[0]
    return circuit


def _write(path: Path, circuit: QuantumCircuit) -> None:
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    body = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "wb") as file:
        file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    os.replace(partial, path)
