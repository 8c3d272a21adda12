"""How circuits are run on IBM Quantum, and the client-side estimator made from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qiskit.quantum_info import SparsePauliOp

from llm_qfl.quantum.ibm.budget import twirled_shots
from llm_qfl.quantum.ibm.ledger import digest
from llm_qfl.quantum.sampled.counts import bases

ZNE_FACTORS = 3
"""Noise factors of the client's zero-noise extrapolation, resilience level 2."""
LONGEST_JOB = 3 * 3600
"""QPU seconds after which the service stops any job (IBM's guide "Maximum execution time")."""


@dataclass(frozen=True)
class IbmOptions:
    """Options of a run on IBM Quantum.

    Attributes:
        mode: every job on its own, or jobs in a batch or a session of this site.
        shots: for each circuit.
        resilience_level: 0 nothing, 1 read-out mitigation (TREX), 2 with zero-noise extrapolation.
        dynamical_decoupling: sequence, or `none`.
        twirling: Pauli twirling: `default` is the client's choice for the resilience level.
        max_execution_time: seconds after which the service stops a job, or None.
        optimization_level: of the transpiler.
        seed: of the transpiler.
    """

    mode: Literal["job", "batch", "session"] = "job"
    shots: int = 1024
    resilience_level: Literal[0, 1, 2] = 1
    dynamical_decoupling: Literal["none", "XX", "XpXm", "XY4"] = "none"
    twirling: Literal["default", "none", "gates", "measure", "both"] = "default"
    max_execution_time: int | None = None
    optimization_level: Literal[0, 1, 2, 3] = 3
    seed: int = 0

    def digest(self) -> str:
        """What of the options changes the numbers."""
        return digest(asdict(self) | {"mode": None})

    def cap(self, seconds: float | None) -> int | None:
        """Most QPU seconds of a job for which so many are left, or None without any limit."""
        most = [] if self.max_execution_time is None else [self.max_execution_time]
        most += [] if seconds is None else [math.floor(seconds), LONGEST_JOB]
        return min(most, default=None)

    def estimator(self, mode: Any, tag: str | None, seed: int | None = None) -> Any:  # noqa: ANN401
        """The client-side estimator.

        Args:
            mode: a device, a batch or a session.
            tag: of its jobs, or None.
            seed: of the simulator in local mode.
        """
        from qiskit_ibm_runtime.executor_estimator import Estimator

        options: dict[str, Any] = {"default_shots": self.shots, "resilience_level": self.resilience_level}
        if tag is not None:
            options["environment"] = {"job_tags": [tag]}
        if seed is not None:
            options["simulator"] = {"seed_simulator": seed}
        if self.dynamical_decoupling != "none":
            options["dynamical_decoupling"] = {"enable": True, "sequence_type": self.dynamical_decoupling}
        if self.twirling != "default":
            options["twirling"] = {"enable_gates": self.twirling in ("gates", "both")}
            # Read-out mitigation twirls measurements in any case; the client warns of being told not to.
            if self.twirling in ("measure", "both") or self.resilience_level == 0:
                options["twirling"]["enable_measure"] = self.twirling in ("measure", "both")
        if self.max_execution_time is not None:
            options["max_execution_time"] = self.max_execution_time
        return Estimator(mode=mode, options=options)

    def executions(self, observables: Sequence[SparsePauliOp]) -> tuple[int, int]:
        """Executions of a row, and of a job beside its rows (read-out calibration)."""
        mitigated = self.resilience_level > 0
        shots = twirled_shots(self.shots, mitigated or self.twirling in ("gates", "measure", "both"))
        return self._circuits_of_row(observables) * shots, shots if mitigated else 0

    def circuits(self, observables: Sequence[SparsePauliOp], rows: int, jobs: int) -> int:
        """Circuits of so many rows in so many jobs, before twirling; calibration included."""
        return rows * self._circuits_of_row(observables) + (jobs if self.resilience_level > 0 else 0)

    def _circuits_of_row(self, observables: Sequence[SparsePauliOp]) -> int:
        factor = ZNE_FACTORS if self.resilience_level == 2 else 1
        return max(len(bases(observables)[0]), 1) * factor
