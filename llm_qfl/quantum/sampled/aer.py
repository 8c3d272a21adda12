"""Aer: shots without noise (`aer`), or with the noise and topology of a fake device (`aer-<fake device>`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.errors import BackendError
from llm_qfl.federation.types import Array, Spent
from llm_qfl.quantum.isa import IsaCache
from llm_qfl.quantum.sampled.angles import AngleCircuit
from llm_qfl.quantum.sampled.counts import Basis, bases
from llm_qfl.quantum.sampled.mitigation import NOISE_FACTORS, ReadoutCorrection, folded, line_at_zero
from llm_qfl.quantum.sampled.noise import calibration_key, cut_circuit, cut_noise, load_fake_device
from llm_qfl.quantum.sampled.shift import Drawn
from llm_qfl.quantum.sampled.simulate import Noise, Simulation, measured_qubits
from llm_qfl.quantum.scope import Scope

OPTIMIZATION_LEVEL, TRANSPILER_SEED = 3, 0
USUAL_SHOTS = 1024


@dataclass(frozen=True, eq=False)
class _Measured:
    """A basis, its circuit at each noise factor, and the noise of the qubits that these touch."""

    basis: Basis
    simulations: tuple[Simulation, ...]
    noise: Noise | None


class AerRunner:
    """A PointRunner over AerSimulator.

    Args:
        name: as in `quantum.backend`.
        angles: the circuit.
        observables: K.
        digest: of circuit and observables by structure.
        device: class name of a fake device, or None for no noise.
        mitigation: as in `quantum.mitigation`; without noise there is nothing to mitigate.
        folder: for transpiled circuits.

    Raises:
        BackendError: packages are missing, no such device, or the circuit is too wide for it.
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
        self._device = None if device is None else load_fake_device(device)
        if self._device is not None and self._device.num_qubits < angles.circuit.num_qubits:
            raise BackendError(
                f"quantum.backend: the circuit has {angles.circuit.num_qubits} qubits, {device} has "
                f"{self._device.num_qubits}; lower quantum.qubits or take a larger device"
            )
        self._mitigated = mitigation != "none" and device is not None
        self._factors = NOISE_FACTORS if self._mitigated and mitigation == "zne" else (1,)
        self._weights = line_at_zero(self._factors) if len(self._factors) > 1 else np.ones(1)
        self._corrections: dict[tuple[str, str, int], list[ReadoutCorrection]] = {}
        found, self._constant = bases(observables)
        self._measured = [self._prepare(basis) for basis in found]

    @property
    def circuits_per_point(self) -> int:
        """Circuits that a point takes: bases times noise factors."""
        return len(self._measured) * len(self._factors)

    @property
    def qubits_touched(self) -> int:
        """Qubits of the device in the widest circuit, those of routing included."""
        return max((m.simulations[0].circuit.num_qubits for m in self._measured), default=0)

    def draw(self, points: Array, scope: Scope, call: int) -> Drawn:
        """See PointRunner."""
        corrections, calibrated = self._calibrate(scope)
        values = np.tile(self._constant, (len(points), 1))
        for number, measured in enumerate(self._measured):
            for factor, simulation in enumerate(measured.simulations):
                simulation.check(self.name, scope.shots)
                seed = scope.seed_at(call, number * len(self._factors) + factor)
                outcomes = simulation.frequencies(points, scope.shots, seed)
                if corrections:
                    outcomes = corrections[number].quasi(outcomes)
                values += self._weights[factor] * measured.basis.values(outcomes)
        executions = len(points) * self.circuits_per_point * scope.shots
        return Drawn(values, Spent(shots=executions + calibrated))

    def close(self) -> None:
        """See PointRunner. Nothing is open."""

    def _prepare(self, basis: Basis) -> _Measured:
        logical = basis.measured(self._angles.circuit)
        target, key, level = _target(self._device)
        digest = f"{self._digest} angles {basis.labels}"
        isa = self._isa.get(logical, digest, target, key=key, optimization_level=level, seed=TRANSPILER_SEED)
        circuit, touched = cut_circuit(isa)
        noise = None if self._device is None else cut_noise(self._device, touched, measured_qubits(circuit))
        simulations = tuple(Simulation(folded(circuit, factor), noise) for factor in self._factors)
        simulations[-1].check(self.name, USUAL_SHOTS)
        return _Measured(basis, simulations, noise)

    def _calibrate(self, scope: Scope) -> tuple[list[ReadoutCorrection], int]:
        """Read-out corrections of each basis, made once for a site and round; executions that were paid now."""
        if not self._mitigated:
            return [], 0
        key = (scope.run, scope.site, scope.server_round)
        if key in self._corrections:
            return self._corrections[key], 0
        while len(self._corrections) >= 64:
            self._corrections.pop(next(iter(self._corrections)))
        seeds = Scope(scope.run, scope.site, scope.server_round, "calibration", scope.seed)
        found = [
            ReadoutCorrection(measured.noise.model, measured.simulations[0].qubits, seeds.seed_at(number))
            for number, measured in enumerate(self._measured)
            if measured.noise is not None
        ]
        self._corrections[key] = found
        return found, sum(correction.executions for correction in found)


def _target(device: Any | None) -> tuple[Any, str, int]:  # noqa: ANN401
    """What is transpiled for, its name in the cache, and the optimization level."""
    if device is not None:
        return device, calibration_key(device), OPTIMIZATION_LEVEL
    from qiskit_aer import AerSimulator

    return AerSimulator(), "aer", 1
