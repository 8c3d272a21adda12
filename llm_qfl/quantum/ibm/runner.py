"""Expectation values of a batch on IBM Quantum: one PUB, one job, never paid twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from qiskit.circuit import QuantumCircuit

from llm_qfl.federation.settings import ledger_folder
from llm_qfl.federation.types import Array
from llm_qfl.quantum.ibm.account import Account
from llm_qfl.quantum.ibm.budget import Budgets, Limits, device_problems, qpu_seconds, rows_per_job
from llm_qfl.quantum.ibm.calibration import calibration_key, calibration_of
from llm_qfl.quantum.ibm.errors import CredentialsError, LedgerBusyError, PreflightError, SessionClosedError
from llm_qfl.quantum.ibm.ledger import Entry, Intent, Ledger, digest_array
from llm_qfl.quantum.ibm.modes import Modes
from llm_qfl.quantum.ibm.options import IbmOptions
from llm_qfl.quantum.ibm.service import BoundJobs, IbmService, submit_once
from llm_qfl.quantum.ibm.submission import Patience, Submission
from llm_qfl.quantum.ibm.work import Outcome, Runner, Step, Work
from llm_qfl.quantum.isa import IsaCache

__all__ = ["IbmRunner", "Outcome", "Runner", "Step", "Work", "make_runner"]


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
        folder: of the node, on a disk that survives the process: the ledger is in `jobs` (`ledger_folder`),
            circuits in `transpiled`.
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
        self._name, self.ledger, self._isas = backend, Ledger(ledger_folder(folder)), IsaCache(folder / "transpiled")
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
        self._modes.works_for(step.run, step.site)
        try:
            with ExitStack() as locks:
                for intent, _ in parts:
                    # Another process may still be at it, left over from a restarted node: what it gets is ours.
                    locks.enter_context(self.ledger.lock(intent.key, wait=self._patience.job))
                done = self._collected(parts)
        except CredentialsError as error:
            error.unfinished = self._has_paid(step)  # a token may be renewed; what was paid for the task is used then
            raise
        return Outcome.of(work, self._options, [entry for entry, _ in done], [arrays for _, arrays in done])

    def preflight(self, work: Work | None = None, run: str | None = None, site: str | None = None) -> list[str]:
        """Log in, look at the device and add up the cost; spends nothing.

        Args:
            work: what would run; without it, account and device are looked at.
            run: whose budget counts beside the site's.
            site: whose budgets count; None: all jobs in the ledger do.

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
        spent = self.ledger.spent(site=site)
        if work is not None:
            sizes = [len(part.points) for _, part in self._parts(Step("preflight", "", 0, ""), work)]
            isa = self._isa(work, device)
            estimate = sum(qpu_seconds(self._executions(work, rows), device, isa) for rows in sizes)
            self._budgets.check(self.ledger, run, estimate, site=site)
            lines.append(
                f"cost: {len(sizes)} job(s) for {len(work.points)} rows, {self._executions(work, sum(sizes))} "
                f"executions, about {estimate:.1f} s of QPU time"
            )
        limit = "no limit of its own" if self._budgets.site is None else f"limit {self._budgets.site:.1f} s"
        lines.append(f"ledger: {len(self.ledger.entries())} jobs, {spent:.1f} s of QPU time; site: {limit}")
        if self._options.mode == "session":
            lines.append("mode session: the service bills from the session's first job to its closing, pauses included")
        return lines

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
        if self._budgets.limited and any(entry is None or entry.job_id is None for entry in found.values()):
            self._settle({intent.key for intent, _ in parts})
        if new:
            device = self._checked(new[0][1].circuit.num_qubits)
            isa = self._isa(new[0][1], device)
            calibration = calibration_of(device, isa)
            estimates = [qpu_seconds(self._executions(part, len(part.points)), device, isa) for _, part in new]
            with self.ledger.lock("budget", wait=True):
                own = {intent.key for intent, _ in new}
                left = self._budgets.check(self.ledger, parts[0][0].run, sum(estimates), own, parts[0][0].site)
                for (intent, part), estimate in zip(new, estimates, strict=True):
                    share = None if left is None else left * (estimate / sum(estimates))
                    found[intent.key] = self.ledger.put(
                        replace(
                            found[intent.key] or Entry(intent),
                            estimate=estimate,
                            cap=self._options.cap(share),
                            device=device.name,
                            instance=device._instance,
                            calibration=calibration,
                            shots=self._options.shots,
                            circuits=self._options.circuits(part.observables, len(part.points), 1),
                        )
                    )
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

    def _collected(self, parts: list[tuple[Intent, Work]]) -> list[tuple[Entry, dict[str, Array]]]:
        """Every part's job is there before the first one is waited for."""
        entries = self._reserve(parts)
        submissions = [self._submission(entry, part) for entry, (_, part) in zip(entries, parts, strict=True)]
        entries = [
            submission.ensure_job(entry) if entry.state in ("intent", "submitting") else entry
            for entry, submission in zip(entries, submissions, strict=True)
        ]
        return [submission.collect(entry) for entry, submission in zip(entries, submissions, strict=True)]

    def _submission(self, entry: Entry, work: Work | None) -> Submission:
        def prepare(entry: Entry) -> tuple[Entry, Callable[[], Any]]:
            if work is None:
                raise PreflightError("there is nothing to submit; nothing was spent")
            return self._ready(entry, work)

        jobs = BoundJobs(self.connect, entry.instance, prepare)
        account = lambda: self.connect().account.source  # noqa: E731
        return Submission(self.ledger, jobs, self._patience, prepare=jobs.prepare, account=account)

    def _ready(self, entry: Entry, work: Work) -> tuple[Entry, Callable[[], Any]]:
        """The entry as it shall be submitted, and the call that posts its one PUB; called by the submission alone.

        Raises:
            IbmError: it cannot be submitted; nothing has left this machine.
        """
        intent, device = entry.intent, self._chosen(entry.device or self._device, work.circuit.num_qubits)
        pub = work.pub(self._isa(work, device))
        with self.ledger.lock("budget", wait=True):  # again: the reservation may be that of a process that died
            left = self._budgets.check(self.ledger, intent.run, entry.estimate, {intent.key}, intent.site)
            caps = [cap for cap in (entry.cap, self._options.cap(left)) if cap is not None]
            entry = self.ledger.put(replace(entry, cap=min(caps, default=None)))
        mode = self._modes.of(device, self.connect(), intent, left)
        options = replace(self._options, max_execution_time=entry.cap)
        estimator = options.estimator(mode, entry.tag)

        def post() -> Any:  # noqa: ANN401
            try:
                return submit_once(device, lambda: estimator.run([pub]))
            except SessionClosedError:
                self._modes.forget(device, intent)
                raise

        return replace(entry, session=getattr(mode, "session_id", None)), post

    def _settle(self, own: set[str]) -> None:
        """Ask what ended jobs and open sessions have cost, as far as the budgets do not know it.

        Args:
            own: keys whose locks this process holds.
        """
        for entry in self.ledger.entries():
            key = entry.intent.key
            if key in own or entry.job_id is None or "qpu_seconds" in entry.metrics:
                continue
            try:
                with self.ledger.lock(key):
                    self._submission(entry, None).settle(self.ledger.get(key) or entry)
            except LedgerBusyError:
                continue  # its process will know
        self._modes.settle(self.connect)

    def _has_paid(self, step: Step) -> bool:
        """Is there a job of this task's round that may cost?"""
        return any(
            entry.state != "intent"
            for entry in self.ledger.entries()
            if (entry.intent.run, entry.intent.site, entry.intent.round) == (step.run, step.site, step.round)
        )


def _is_new(entry: Entry | None) -> bool:
    return entry is None or entry.state == "intent"
