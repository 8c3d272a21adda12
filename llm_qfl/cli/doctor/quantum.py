"""Where the site's circuits run: does the circuit fit, and does one circuit come back with a number?"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from llm_qfl.cli.doctor.check import Check, guarded
from llm_qfl.cli.doctor.node import Node
from llm_qfl.federation.backend_names import fake_device
from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.config_checks import readout_problems
from llm_qfl.federation.errors import BackendError, ConfigError


def check_circuit(node: Node, classes: int) -> Check:
    """Can circuit and readout tell that many classes apart?

    Raises:
        ConfigError, CircuitError: no.
    """
    from llm_qfl.quantum.circuits import build_circuit

    if wrong := readout_problems(node.config.quantum, classes):
        raise ConfigError(wrong)
    circuit = build_circuit(node.config.quantum, classes)
    evaluations = 2 * circuit.gates + 1
    return Check(
        "circuit", "ok", f"{circuit.name}: {circuit.circuit.num_qubits} qubits, {circuit.gates} trained angles, "
        f"{classes} classes; a gradient takes {evaluations} circuits a row where shots are drawn",
    )  # fmt: skip


def check_backends(node: Node, classes: int) -> list[Check]:
    """One circuit on every simulator that the site uses. Devices of IBM Quantum have lines of their own."""
    lines = []
    for name, config in node.places.items():
        if not name.startswith("ibm:"):
            lines += guarded(f"backend {name}", partial(_run_one, config, classes))
    return lines


def _run_one(config: QuantumConfig, classes: int) -> Check:
    """Its own folder is thrown away: what a check has transpiled must not look like a site's work.

    Raises:
        BackendError, CircuitError: it cannot run there, or gave no number.
    """
    from llm_qfl.quantum.backends import make_backend
    from llm_qfl.quantum.circuits import build_circuit
    from llm_qfl.quantum.scope import Place

    circuit = build_circuit(config, classes)
    with tempfile.TemporaryDirectory(prefix="llm-qfl-doctor-") as folder:
        started = time.monotonic()
        backend = make_backend(config, circuit, Place(Path(folder)))
        ready = time.monotonic()
        row, weights = np.zeros((1, len(circuit.input_parameters))), np.zeros(len(circuit.weight_parameters))
        try:
            values = backend.expectations(row, weights)
        finally:
            backend.close()
        ended = time.monotonic()
    if values.shape != (1, len(circuit.observables)) or not np.isfinite(values).all():
        raise BackendError(f"{config.backend}: expected {len(circuit.observables)} finite values, got {values.shape}")
    device = fake_device(config.backend)
    said = f"{circuit.circuit.num_qubits} qubits" + (f" on {device}" if device else "")
    said += "" if config.backend == "exact" else f", {config.shots} shots"
    said += f": 1 circuit in {ended - ready:.2f} s, ready after {ready - started:.1f} s"
    return Check(f"backend {config.backend}", "ok", said)
