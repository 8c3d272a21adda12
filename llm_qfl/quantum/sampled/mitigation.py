"""Error mitigation where circuits run on Aer: libraries of the Qiskit ecosystem, and what they cost.

- `readout`: mthree (Nation et al., PRX Quantum 2, 040326): two calibration circuits a measured qubit, once a round,
  then a linear system for each point's counts. No more shots for the circuits themselves; their variance grows.
- `zne`: `readout`, and zero-noise extrapolation: two-qubit gates folded 1, 3 and 5 times (qiskit-mitigation), a
  straight line through the three values. Three times the circuits and shots; the variance grows 1.46 times more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qiskit.circuit import QuantumCircuit

from llm_qfl.federation.errors import BackendError
from llm_qfl.federation.types import Array
from llm_qfl.quantum.sampled.counts import Counts

NOISE_FACTORS = (1, 3, 5)
CALIBRATION_SHOTS = 4096


def folded(circuit: QuantumCircuit, factor: int) -> QuantumCircuit:
    """An ISA circuit whose two-qubit gates are each repeated `factor` times, forth and back.

    Raises:
        BackendError: qiskit-mitigation is not installed.
    """
    if factor == 1:
        return circuit
    try:
        from qiskit_mitigation.zne import GateFoldingPass
    except ImportError as error:
        raise BackendError("quantum.mitigation zne: install the extra aer: pip install 'llm-qfl[aer]'") from error
    from qiskit.transpiler import PassManager

    found: QuantumCircuit = PassManager([GateFoldingPass(factor)]).run(circuit)
    return found


def line_at_zero(factors: Sequence[int] = NOISE_FACTORS) -> Array:
    """Weights of the values at these noise factors whose sum is the least-squares line's value at zero."""
    x = np.asarray(factors, np.float64)
    centred = x - x.mean()
    return np.asarray(1 / len(x) - x.mean() * centred / (centred @ centred))


class ReadoutCorrection:
    """Assignment errors of the measured qubits, calibrated once.

    Args:
        noise_model: Aer's.
        qubits: measured into bit 0, 1, ...
        seed: of the calibration's shots.

    Attributes:
        executions: calibration circuits times shots.

    Raises:
        BackendError: mthree is not installed.
    """

    def __init__(self, noise_model: Any, qubits: Sequence[int], seed: int) -> None:  # noqa: ANN401
        try:
            from mthree import M3Mitigation
        except ImportError as error:
            raise BackendError("quantum.mitigation: install the extra aer: pip install 'llm-qfl[aer]'") from error
        self._qubits = list(qubits)
        from qiskit_aer import AerSimulator

        simulator = AerSimulator(method="density_matrix", noise_model=noise_model, seed_simulator=seed)
        self._mthree = M3Mitigation(simulator)
        self._mthree.cals_from_system(self._qubits, shots=CALIBRATION_SHOTS, method="independent", async_cal=False)
        self.executions = 2 * len(self._qubits) * CALIBRATION_SHOTS

    def quasi(self, outcomes: Array | list[Counts]) -> Array | list[Counts]:
        """Quasi-probabilities of each point; they may be negative and sum to one.

        Counts of all outcomes (M, 2^n) are multiplied by the inverse of each qubit's assignment matrix: mthree's own
        solution where every outcome was seen, at a hundredth of its time. Wide circuits' counts go through mthree.
        """
        if isinstance(outcomes, np.ndarray):
            return self._inverse(outcomes / outcomes.sum(axis=1, keepdims=True))
        width = len(self._qubits)
        words = [{format(key, f"0{width}b"): int(value) for key, value in one.items()} for one in outcomes]
        corrected = self._mthree.apply_correction(words, self._qubits)
        return [{int(key, 2): float(value) for key, value in one.items()} for one in corrected]

    def _inverse(self, frequencies: Array) -> Array:
        width = len(self._qubits)
        table = frequencies.reshape(-1, *[2] * width)  # axis 1 is the last bit
        for bit, qubit in enumerate(self._qubits):
            assignment = np.asarray(self._mthree.single_qubit_cals[qubit], np.float64)  # column: what is
            axis = width - bit
            table = np.moveaxis(np.tensordot(np.linalg.inv(assignment), table, axes=(1, axis)), 0, axis)
        return table.reshape(frequencies.shape)
