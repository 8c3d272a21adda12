"""What is asked of a runner, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.entry import Entry
from llm_qfl.quantum.ibm.errors import PreflightError
from llm_qfl.quantum.ibm.options import IbmOptions


@dataclass(frozen=True)
class Step:
    """For whom and when; with circuit, values and options it names the job.

    Attributes:
        run: of the federation.
        site: its name.
        round: of the federation.
        name: unique within the round, the same when the round is done again after a crash.
    """

    run: str
    site: str
    round: int
    name: str


@dataclass(frozen=True)
class Work:
    """One circuit at many points.

    Attributes:
        digest: of circuit and observables by structure, the same in every process (`ModelCircuit.digest`).
        circuit: logical, without measurements.
        parameters: P, in the order of the points' columns.
        points: (N, P).
        observables: K, with real coefficients.
    """

    digest: str
    circuit: QuantumCircuit
    parameters: tuple[Parameter, ...]
    points: Array
    observables: Sequence[SparsePauliOp]

    def check(self) -> None:
        """Shapes.

        Raises:
            PreflightError: they do not fit.
        """
        if self.points.ndim != 2 or self.points.shape[1] != len(self.parameters) or not len(self.points):
            raise PreflightError(
                f"points: expected (N, {len(self.parameters)}) with N > 0, got {self.points.shape}; nothing was spent"
            )
        if not self.observables:
            raise PreflightError("observables: expected at least one, got none; nothing was spent")

    def pub(self, isa: QuantumCircuit) -> tuple[object, ...]:
        """The estimator's input: every observable at every point.

        Args:
            isa: the circuit, transpiled; its parameters are told by name, as one read from disk has its own objects.
        """
        observables = [[operator.apply_layout(isa.layout)] for operator in self.observables]
        kept = {parameter.name for parameter in isa.parameters}
        columns = [number for number, parameter in enumerate(self.parameters) if parameter.name in kept]
        if not columns:
            return isa, observables
        names = tuple(self.parameters[number].name for number in columns)
        return isa, observables, {names: self.points[:, columns]}


@dataclass(frozen=True)
class Outcome:
    """What came back.

    Attributes:
        values: (N, K) expectation values.
        errors: (N, K) standard errors as IBM's client estimates them.
        jobs: their ids at the service; none in local mode.
        metrics: jobs, pubs, circuits, shots (of a circuit), executions (circuits times shots, calibration included),
            queue_seconds (of the job that waited longest), qpu_seconds (of all jobs), and qpu_seconds_estimated: how
            much of it is our estimate, because the service had not told the sum when the result was fetched.
    """

    values: Array
    errors: Array
    jobs: tuple[str, ...]
    metrics: dict[str, float]

    @classmethod
    def of(
        cls, work: Work, options: IbmOptions, entries: Sequence[Entry], arrays: Sequence[Mapping[str, Array]]
    ) -> Outcome:
        """Of the jobs that a piece of work was cut into.

        Args:
            work: all of it.
            options: how it was run.
            entries: of its jobs, in order.
            arrays: `evs` and `stds` (K, n) of each.
        """
        row, fixed = options.executions(work.observables)
        queues = [entry.metrics.get("queue_seconds", 0.0) for entry in entries]
        metrics = {
            "jobs": float(len(entries)),
            "pubs": float(len(entries)),
            "circuits": float(options.circuits(work.observables, len(work.points), len(entries))),
            "shots": float(options.shots),
            "executions": float(len(work.points) * row + fixed * len(entries)),
            "queue_seconds": max(queues),
            "qpu_seconds": sum(entry.seconds for entry in entries),
            "qpu_seconds_estimated": sum(entry.estimate for entry in entries if "qpu_seconds" not in entry.metrics),
        }
        values, errors = (np.concatenate([part[name].T for part in arrays]) for name in ("evs", "stds"))
        return cls(values, errors, tuple(str(entry.job_id) for entry in entries), metrics)


class Runner(Protocol):
    """What a site's backend needs of IBM Quantum."""

    def expectations(self, step: Step, work: Work, *, seed: int = 0) -> Outcome:
        """(N, K) expectation values."""

    def preflight(self, work: Work | None = None, run: str | None = None, site: str | None = None) -> list[str]:
        """What would run where and at what cost, in lines; spends nothing."""

    def close(self) -> None:
        """Close what is open at the service."""
