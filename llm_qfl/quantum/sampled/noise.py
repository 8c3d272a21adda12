"""Fake devices, and a device's noise model cut to the qubits that a circuit touches.

A model of 156 qubits costs a four-qubit circuit more than ten times what its own four qubits' part costs, and changes
nothing: errors of qubits that are never touched never act.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from qiskit.circuit import QuantumCircuit, QuantumRegister
from qiskit.providers import BackendV2, Options
from qiskit.transpiler import Target

from llm_qfl.federation.errors import BackendError
from llm_qfl.quantum.sampled.simulate import Noise


def load_fake_device(name: str) -> Any:  # noqa: ANN401
    """A device of qiskit-ibm-runtime's fake provider.

    Raises:
        BackendError: qiskit-ibm-runtime is not installed, or it has no such device.
    """
    try:
        from qiskit_ibm_runtime import fake_provider
    except ImportError as error:
        raise BackendError(
            f"quantum.backend: fake device {name!r} needs the extra aer: pip install 'llm-qfl[aer]'"
        ) from error
    found = getattr(fake_provider, name, None)
    if not (isinstance(found, type) and issubclass(found, BackendV2)):
        import difflib

        names = [item for item in dir(fake_provider) if item.startswith("Fake")]
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise BackendError(f"quantum.backend: no fake device is called {name!r}{hint}")
    return found()


def calibration_key(device: Any) -> str:  # noqa: ANN401
    """Names a fake device with its snapshot."""
    return f"{device.name} {device.backend_version} {getattr(device, 'props_filename', '')}"


class CutDevice(BackendV2):  # type: ignore[misc]  # Qiskit is untyped
    """The part of a device that a circuit touches, as a backend from which Aer reads a noise model.

    Args:
        device: the whole one.
        qubits: of the device, in the order of the part's.
    """

    def __init__(self, device: Any, qubits: list[int]) -> None:  # noqa: ANN401
        super().__init__(name=f"{device.name}, {len(qubits)} qubits")
        self._target = _cut_target(device.target, qubits)

    @property
    def target(self) -> Target:
        """See BackendV2."""
        return self._target

    @property
    def max_circuits(self) -> None:
        """See BackendV2."""
        return None

    @classmethod
    def _default_options(cls) -> Options:
        return Options()

    def run(self, run_input: Any, **options: Any) -> Any:  # noqa: ANN401
        """See BackendV2; nothing runs here."""
        raise BackendError("a cut device holds a noise model and runs nothing")


def cut_circuit(circuit: QuantumCircuit) -> tuple[QuantumCircuit, list[int]]:
    """An ISA circuit over the qubits that it touches alone, and which of the device's these are."""
    used = sorted({circuit.find_bit(bit).index for step in circuit.data for bit in _touched(step)})
    place = {qubit: number for number, qubit in enumerate(used)}
    cut = QuantumCircuit(QuantumRegister(len(used), "q"), *circuit.cregs, name=circuit.name)
    for step in circuit.data:
        qubits = [circuit.find_bit(bit).index for bit in step.qubits]
        if step.operation.name == "barrier":
            qubits = [qubit for qubit in qubits if qubit in place]
            cut.barrier([place[qubit] for qubit in qubits])
            continue
        cut.append(step.operation, [place[qubit] for qubit in qubits], step.clbits)
    return cut, used


def cut_noise(device: Any, qubits: list[int], measured: tuple[int, ...]) -> Noise:  # noqa: ANN401
    """The errors of a part of a device.

    Args:
        device: the whole one.
        qubits: of the device, in the order of the part's.
        measured: the part's qubit behind bit 0, 1, ...
    """
    from qiskit_aer.noise import NoiseModel
    from qiskit_aer.noise.device import basic_device_gate_errors, basic_device_readout_errors

    part = CutDevice(device, qubits)
    errors = {on[0]: np.array(error.probabilities) for on, error in basic_device_readout_errors(target=part.target)}
    readout = {bit: errors[qubit] for bit, qubit in enumerate(measured) if qubit in errors}
    gates = {(name, tuple(on)): error for name, on, error in basic_device_gate_errors(target=part.target)}
    return Noise(NoiseModel.from_backend(part), gates, readout)


def _touched(step: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return () if step.operation.name == "barrier" else tuple(step.qubits)


def _cut_target(whole: Target, qubits: list[int]) -> Target:
    place = {qubit: number for number, qubit in enumerate(qubits)}
    properties = whole.qubit_properties
    target = Target(
        num_qubits=len(qubits),
        dt=whole.dt,
        granularity=whole.granularity,
        qubit_properties=None if properties is None else [properties[qubit] for qubit in qubits],
    )
    for name in whole.operation_names:
        entries = whole[name]
        if entries is None or None in entries:  # control flow and the like: on any qubits
            continue
        kept = {tuple(place[q] for q in on): entry for on, entry in entries.items() if place.keys() >= set(on)}
        if kept:
            target.add_instruction(whole.operation_from_name(name), kept, name=name)
    return target
