"""Aer: shots without noise (`aer`), or with the noise and topology of a fake device (`aer-<fake device>`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.errors import BackendError
from llm_qfl.federation.types import Array, Spent
from llm_qfl.quantum.isa import IsaCache
from llm_qfl.quantum.sampled.angles import AngleCircuit
from llm_qfl.quantum.sampled.counts import Basis, Counts, bases
from llm_qfl.quantum.sampled.mitigation import NOISE_FACTORS, ReadoutCorrection, folded, line_at_zero
from llm_qfl.quantum.sampled.noise import CutDevice, calibration_key, cut_circuit, load_fake_device
from llm_qfl.quantum.sampled.shift import Drawn
from llm_qfl.quantum.scope import Scope

OPTIMIZATION_LEVEL, TRANSPILER_SEED = 3, 0
SECONDS_PER_AMPLITUDE, SECONDS_PER_GATE = 4e-9, 5e-6  # of one gate, measured on one core
AER_SEED_STEP = 2113
"""Aer adds this to the seed from one circuit of a call to the next: cutting a call in two changes no number."""
LONGEST_CALL, LONGEST_POINT = 4.0, 30.0
"""Seconds. Aer holds Python's global lock while it runs, and a Flower node that is silent for a minute is given up."""


@dataclass(frozen=True, eq=False)
class _Measured:
    """A basis with its circuits, one for each noise factor, and a simulator with the noise of the same qubits."""

    basis: Basis
    circuits: tuple[QuantumCircuit, ...]
    simulator: Any
    qubits: tuple[int, ...]
    chunk: int


class AerRunner:
    """A PointRunner over AerSimulator.

    Args:
        name: as in `quantum.backend`.
        angles: the circuit.
        observables: K.
        digest: of circuit and observables by structure.
        device: class name of a fake device, or None for no noise.
        mitigation: as in `quantum.mitigation`.
        folder: for transpiled circuits.

    Raises:
        BackendError: qiskit-aer is not installed, no such device, or the circuit is too wide for it.
    """

    def __init__(
        self,
        name: str,
        angles: AngleCircuit,
        observables: Sequence[SparsePauliOp],
        *,
        digest: str,
        device: str | None,
        mitigation: str,
        folder: Path,
    ) -> None:
        self.name, self._angles, self._digest, self._isa = name, angles, digest, IsaCache(folder)
        self._mitigated = mitigation != "none" and device is not None
        self._corrections: dict[tuple[str, str, int], list[ReadoutCorrection]] = {}
        self._factors = NOISE_FACTORS if mitigation == "zne" and device is not None else (1,)
        self._device = None if device is None else load_fake_device(device)
        if self._device is not None and self._device.num_qubits < angles.circuit.num_qubits:
            raise BackendError(
                f"quantum.backend: the circuit has {angles.circuit.num_qubits} qubits, {device} has "
                f"{self._device.num_qubits}; lower quantum.qubits or take a larger device"
            )
        found, self._constant = bases(observables)
        self._measured = [self._prepare(basis) for basis in found]

    @property
    def circuits_per_point(self) -> int:
        """Circuits that a point takes: bases times noise factors."""
        return len(self._measured) * len(self._factors)

    def draw(self, points: Array, scope: Scope, call: int) -> Drawn:
        """See PointRunner."""
        corrections, calibrated = self._calibrate(scope)
        weights = line_at_zero() if len(self._factors) > 1 else np.ones(1)
        values = np.tile(self._constant, (len(points), 1))
        for number, measured in enumerate(self._measured):
            for factor, circuit in enumerate(measured.circuits):
                seed = scope.seed_at(call, number * len(self._factors) + factor)
                counts = _run(measured, circuit, points, scope.shots, seed)
                if corrections:
                    counts = corrections[number].quasi(counts)
                values += weights[factor] * measured.basis.values(counts)
        executions = len(points) * self.circuits_per_point * scope.shots
        return Drawn(values, Spent(shots=executions + calibrated))

    def _prepare(self, basis: Basis) -> _Measured:
        try:
            from qiskit_aer import AerSimulator
            from qiskit_aer.noise import NoiseModel
        except ImportError as error:
            raise BackendError(f"quantum.backend {self.name}: install the extra aer: pip install 'llm-qfl[aer]'") from (
                error
            )
        logical = basis.measured(self._angles.circuit)
        target = AerSimulator() if self._device is None else self._device
        key = "aer" if self._device is None else calibration_key(self._device)
        digest = f"{self._digest} angles {basis.labels}"
        level = 1 if self._device is None else OPTIMIZATION_LEVEL
        isa = self._isa.get(logical, digest, target, key=key, optimization_level=level, seed=TRANSPILER_SEED)
        circuit, touched = cut_circuit(isa)
        seconds = _seconds(circuit, noisy=self._device is not None) * max(self._factors)
        if seconds > LONGEST_POINT:
            raise BackendError(
                f"quantum.backend {self.name}: {circuit.num_qubits} qubits take about {seconds:.0f} s a circuit here, "
                f"expected at most {LONGEST_POINT:.0f}; lower quantum.qubits or quantum.layers"
            )
        if self._device is None:
            simulator = AerSimulator(method="statevector")
        else:
            noise = NoiseModel.from_backend(CutDevice(self._device, touched))
            simulator = AerSimulator(method="density_matrix", noise_model=noise)
        simulator.set_options(runtime_parameter_bind_enable=True, max_parallel_experiments=0)
        circuits = tuple(folded(circuit, factor) for factor in self._factors)
        return _Measured(basis, circuits, simulator, _measured_qubits(circuit), max(1, int(LONGEST_CALL / seconds)))

    def _calibrate(self, scope: Scope) -> tuple[list[ReadoutCorrection], int]:
        """Read-out corrections of each basis, made once for a site and round; executions that were paid now."""
        if not self._mitigated:
            return [], 0
        key = (scope.run, scope.site, scope.server_round)
        if key in self._corrections:
            return self._corrections[key], 0
        while len(self._corrections) >= 64:
            self._corrections.pop(next(iter(self._corrections)))
        seed = Scope(scope.run, scope.site, scope.server_round, "calibration", scope.seed).seed_at(0)
        found = []
        for number, measured in enumerate(self._measured):
            from qiskit_aer import AerSimulator

            noise = measured.simulator.options.noise_model
            simulator = AerSimulator(method="density_matrix", noise_model=noise, seed_simulator=seed + number)
            found.append(ReadoutCorrection(simulator, measured.qubits))
        self._corrections[key] = found
        return found, sum(correction.executions for correction in found)


def _run(measured: _Measured, circuit: QuantumCircuit, points: Array, shots: int, seed: int) -> list[Counts]:
    counts: list[Counts] = []
    parameters = list(circuit.parameters)  # by name, which is by number
    for start in range(0, len(points), measured.chunk):
        part = points[start : start + measured.chunk]
        binds = [{parameter: part[:, i].tolist() for i, parameter in enumerate(parameters)}]
        # SamplerV2 of Aer makes a string of every shot: half the points a second. Counts come from the same call.
        result = measured.simulator.run(
            circuit, parameter_binds=binds, shots=shots, seed_simulator=seed + AER_SEED_STEP * start
        ).result()
        if not result.success:
            raise BackendError(f"Aer: {result.status}")
        found = [{int(key, 16): value for key, value in one.data.counts.items()} for one in result.results]
        counts += found
    return counts


def _measured_qubits(circuit: QuantumCircuit) -> tuple[int, ...]:
    """The qubit that is measured into bit 0, 1, ..."""
    into = {
        circuit.find_bit(step.clbits[0]).index: circuit.find_bit(step.qubits[0]).index
        for step in circuit.data
        if step.operation.name == "measure"
    }
    return tuple(into[bit] for bit in range(len(into)))


def _seconds(circuit: QuantumCircuit, *, noisy: bool) -> float:
    """About how long one point takes; from the circuit alone, so that a run is cut into the same calls everywhere."""
    amplitudes = float((4 if noisy else 2) ** circuit.num_qubits)
    return len(circuit.data) * (SECONDS_PER_GATE + SECONDS_PER_AMPLITUDE * amplitudes) + 5e-4
