"""Expectation values of a batch on IBM Quantum: one PUB, one job, never paid twice."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from qiskit.circuit import QuantumCircuit

from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.account import Account
from llm_qfl.quantum.ibm.budget import Budgets, Limits, device_problems, qpu_seconds, rows_per_job
from llm_qfl.quantum.ibm.calibration import calibration_key, calibration_of
from llm_qfl.quantum.ibm.errors import PreflightError, SessionClosedError
from llm_qfl.quantum.ibm.ledger import Entry, Intent, Ledger, digest_array
from llm_qfl.quantum.ibm.modes import Modes
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.service import BoundJobs, IbmService, submit_once
from llm_qfl.quantum.ibm.submission import Patience, Submission
from llm_qfl.quantum.ibm.work import Outcome, Step, Work
from llm_qfl.quantum.isa import IsaCache

__all__ = ["IbmRunner", "Outcome", "Runner", "Step", "Work", "make_runner"]


class Runner(Protocol):
    """What a site's backend needs of IBM Quantum."""

    def expectations(self, step: Step, work: Work, *, seed: int = 0) -> Outcome:
        """(N, K) expectation values."""

    def preflight(self, work: Work | None = None, run: str | None = None) -> list[str]:
        """What would run where and at what cost, in lines; spends nothing."""

    def close(self) -> None:
        """Close what is open at the service."""


def make_runner(
    backend: str,
    folder: Path,
    *,
    options: IbmOptions | None = None,
    budgets: Budgets | None = None,
    patience: Patience | None = None,
) -> Runner:
    """The runner of a backend's name.

    Args:
        backend: `ibm:<device>`, `ibm:least-busy` or `ibm-local:<fake device>`.
        folder: of the node, on a disk that survives the process: the ledger is in `jobs`, circuits in `transpiled`.
        options: how circuits are run.
        budgets: QPU seconds of run and site.
        patience: how long to wait for what.

    Raises:
        PreflightError: no such kind of backend.
        LedgerError: the ledger's folder cannot be made.
    """
    if backend.startswith("ibm-local:"):
        from llm_qfl.quantum.ibm.local import LocalRunner

        return LocalRunner(backend, folder, options=options)
    return IbmRunner(backend, folder, options=options, budgets=budgets, patience=patience)


class IbmRunner:
    """Runs batches for one site. Nothing is asked of the service before something must be.

    Args:
        backend: `ibm:<device>` or `ibm:least-busy`.
        folder: of the node.
        options: how circuits are run.
        budgets: QPU seconds of run and site.
        patience: how long to wait for what.
        account: default: found in the environment when first needed.
        limits: of a job.
    """

    def __init__(
        self,
        backend: str,
        folder: Path,
        *,
        options: IbmOptions | None = None,
        budgets: Budgets | None = None,
        patience: Patience | None = None,
        account: Account | None = None,
        limits: Limits | None = None,
    ) -> None:
        kind, _, self._device = backend.partition(":")
        if kind != "ibm" or not self._device:
            raise PreflightError(f"quantum.backend: expected ibm:<device> or ibm:least-busy, got {backend!r}")
        self._name, self.ledger, self._isas = backend, Ledger(folder / "jobs"), IsaCache(folder / "transpiled")
        self._options, self._budgets = options or IbmOptions(), budgets or Budgets()
        self._patience, self._limits, self._account = patience or Patience(), limits or Limits(), account
        self._service: IbmService | None = None
        self._modes = Modes(self._options.mode, self.ledger)
        self._devices: dict[str, Any] = {}

    def connect(self) -> IbmService:
        """The service, logged in to on first use.

        Raises:
            CredentialsError: it does not let this site in.
        """
        if self._service is None:
            self._service = IbmService(self._account or Account.from_environment())
        return self._service

    def expectations(self, step: Step, work: Work, *, seed: int = 0) -> Outcome:
        """(N, K) expectation values.

        Args:
            step: for whom and when.
            work: what.
            seed: a device has none; here so that runners are called alike.

        Raises:
            PreflightError: refused before anything was spent.
            JobError: a job ended without a result.
            JobWaitError: not finished in time; call again with the same arguments.
        """
        parts = self._parts(step, work)
        with ExitStack() as locks:
            for intent, _ in parts:
                # Another process may still be at it, left over from a node that was restarted: what it gets is ours.
                locks.enter_context(self.ledger.lock(intent.key, wait=True))
            entries = self._reserve(parts)
            submissions = [self._submission(entry, part) for entry, (_, part) in zip(entries, parts, strict=True)]
            entries = [
                submission.ensure_job(entry) if entry.state in ("intent", "submitting") else entry
                for entry, submission in zip(entries, submissions, strict=True)
            ]
            done = [submission.collect(entry) for entry, submission in zip(entries, submissions, strict=True)]
        return self._outcome(work, [entry for entry, _ in done], [arrays for _, arrays in done])

    def preflight(self, work: Work | None = None, run: str | None = None) -> list[str]:
        """Log in, look at the device and add up the cost; spends nothing.

        Args:
            work: what would run; without it, account and device are looked at.
            run: whose budget counts beside the site's.

        Raises:
            CredentialsError: no account, or it is not accepted.
            PreflightError: the device cannot take the work, or its cost is over budget.
        """
        service = self.connect()
        qubits = 1 if work is None else work.circuit.num_qubits
        device = self._checked(qubits)
        lines = [
            f"account: {service.account.source} is accepted",
            f"device: {device.name}, {device.num_qubits} qubits, {device.status().pending_jobs} jobs in its queue",
        ]
        spent = self.ledger.spent()
        if work is not None:
            sizes = [len(part.points) for _, part in self._parts(Step("preflight", "", 0, ""), work)]
            isa = self._isa(work, device)
            estimate = sum(qpu_seconds(self._executions(work, rows), device, isa) for rows in sizes)
            self._budgets.check(self.ledger, run, estimate)
            lines.append(
                f"cost: {len(sizes)} job(s) for {len(work.points)} rows, {self._executions(work, sum(sizes))} "
                f"executions, about {estimate:.1f} s of QPU time"
            )
        limit = "no limit of its own" if self._budgets.site is None else f"limit {self._budgets.site:.1f} s"
        return [*lines, f"ledger: {len(self.ledger.entries())} jobs, {spent:.1f} s of QPU time; site: {limit}"]

    def close(self) -> None:
        """Close the batch or session, so that it costs nothing more; jobs in it run to their end."""
        self._modes.close(self.connect)

    def _parts(self, step: Step, work: Work) -> list[tuple[Intent, Work]]:
        """As few jobs as the limits allow; which rows go together must not depend on what the service says."""
        work.check()
        row, fixed = self._options.executions(work.observables)
        size = rows_per_job(self._limits, row, fixed)
        parts = []
        for start in range(0, len(work.points), size):
            part = replace(work, points=work.points[start : start + size])
            name = step.name if size >= len(work.points) else f"{step.name}#{start // size}"
            intent = Intent(
                step.run, step.site, step.round, name, work.digest, digest_array(part.points),
                self._options.digest(), self._name,
            )  # fmt: skip
            parts.append((intent, part))
        return parts

    def _reserve(self, parts: list[tuple[Intent, Work]]) -> list[Entry]:
        """Entries of all parts; new ones are let through together or not at all."""
        found = {intent.key: self.ledger.get(intent.key) for intent, _ in parts}
        new = [(intent, part) for intent, part in parts if _is_new(found[intent.key])]
        if new:
            device = self._checked(new[0][1].circuit.num_qubits)
            isa = self._isa(new[0][1], device)
            calibration = calibration_of(device, isa)
            estimates = [qpu_seconds(self._executions(part, len(part.points)), device, isa) for _, part in new]
            with self.ledger.lock("budget", wait=True):
                own = {intent.key for intent, _ in new}
                self._budgets.check(self.ledger, new[0][0].run, sum(estimates), own)
                for (intent, _), estimate in zip(new, estimates, strict=True):
                    about = {"estimate": estimate, "device": device.name, "calibration": calibration}
                    before = found[intent.key] or Entry(intent)
                    found[intent.key] = self.ledger.put(replace(before, instance=device._instance, **about))
        return [entry for intent, _ in parts if (entry := found[intent.key]) is not None]

    def _checked(self, qubits: int) -> Any:  # noqa: ANN401
        """The device.

        Raises:
            PreflightError: with every reason why it cannot be used.
        """
        device = self._chosen(self._device, qubits)
        problems = device_problems(device, qubits, self._options.shots)
        if problem := self.connect().usage_problem(device):
            problems.append(problem)
        if problems:
            raise PreflightError("; ".join(problems) + "; nothing was spent")
        return device

    def _chosen(self, name: str, qubits: int) -> Any:  # noqa: ANN401
        if name not in self._devices:
            self._devices[name] = self.connect().device(name, qubits)
        return self._devices[name]

    def _isa(self, work: Work, device: Any) -> QuantumCircuit:  # noqa: ANN401
        return self._isas.get(
            work.circuit, work.digest, device, key=calibration_key(device),
            optimization_level=self._options.optimization_level, seed=self._options.seed,
        )  # fmt: skip

    def _executions(self, work: Work, rows: int) -> int:
        row, fixed = self._options.executions(work.observables)
        return rows * row + fixed

    def _submission(self, entry: Entry, work: Work) -> Submission:
        jobs = BoundJobs(self.connect, entry.instance, lambda tag: self._post(entry, work, tag))
        return Submission(self.ledger, jobs, self._patience)

    def _post(self, entry: Entry, work: Work, tag: str) -> Any:  # noqa: ANN401
        """Submit one PUB; called by the submission alone."""
        device = self._chosen(entry.device or self._device, work.circuit.num_qubits)
        pub = work.pub(self._isa(work, device))
        try:
            left = self._budgets.left(self.ledger, entry.intent.run, entry.estimate)
            estimator = self._options.within(left).estimator(self._modes.of(device, self.connect()), tag)
            return submit_once(device, lambda: estimator.run([pub]))
        except SessionClosedError:
            self._modes.forget(device)
            raise

    def _outcome(self, work: Work, entries: list[Entry], arrays: list[dict[str, Array]]) -> Outcome:
        row, fixed = self._options.executions(work.observables)
        queues = [entry.metrics.get("queue_seconds", 0.0) for entry in entries]
        metrics = {
            "jobs": float(len(entries)),
            "pubs": float(len(entries)),
            "circuits": float(self._options.circuits(work.observables, len(work.points), len(entries))),
            "shots": float(self._options.shots),
            "executions": float(len(work.points) * row + fixed * len(entries)),
            "queue_seconds": max(queues),
            "qpu_seconds": sum(entry.seconds for entry in entries),
            "qpu_seconds_estimated": sum(entry.estimate for entry in entries if "qpu_seconds" not in entry.metrics),
        }
        values, errors = (np.concatenate([part[name].T for part in arrays]) for name in ("evs", "stds"))
        return Outcome(values, errors, tuple(str(entry.job_id) for entry in entries), metrics)


def _is_new(entry: Entry | None) -> bool:
    return entry is None or entry.state == "intent"
