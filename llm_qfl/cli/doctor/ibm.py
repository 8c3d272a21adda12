"""IBM Quantum before anything is spent: whose account, which device, what a step costs, what is left, what is open."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any

import numpy as np

from llm_qfl.cli.doctor.check import Check, guarded
from llm_qfl.cli.doctor.node import Node
from llm_qfl.cli.jobs import read_jobs
from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import BackendError

ACCOUNT_ADVICE = "set QISKIT_IBM_TOKEN or LLM_QFL_IBM_TOKEN_FILE, or save an account with qiskit-ibm-runtime"
_RUN = "llm-qfl-doctor"
"""No run is called so: a new run has spent nothing yet."""


def check_ibm(node: Node, classes: int, rows: int, *, offline: bool) -> list[Check]:
    """Account, device and cost, for every device that the site uses.

    Args:
        node: as configured.
        classes: for the readout.
        rows: that a training step takes.
        offline: ask nobody; look only at what is on this machine.
    """
    devices = {name: config for name, config in node.places.items() if name.startswith("ibm:")}
    if not devices:
        return [Check("IBM account", "skipped", "no ibm: backend is configured")]
    if offline:
        asked = [Check(name, "skipped", "not asked (--offline)") for name in devices]
        return [*guarded("IBM account", check_account_here), *asked]
    lines: list[Check] = []
    for name, config in devices.items():
        lines += _check_device(node, name, config, classes, rows)
    return list(dict.fromkeys(lines))  # two devices share their account


def check_account_here() -> Check:
    """Is there an account at all? It is not tried.

    Raises:
        BackendError: none, or its token file cannot be read.
    """
    from llm_qfl.quantum.ibm.account import Account

    account = Account.from_environment()
    if account.token is None:
        from qiskit_ibm_runtime import QiskitRuntimeService

        if not QiskitRuntimeService.saved_accounts(name=account.name):
            raise BackendError(f"no token in the environment and nothing saved as {account.source}; {ACCOUNT_ADVICE}")
    return Check("IBM account", "ok", f"{account.source} is there; not tried (--offline)")


def check_ledger(node: Node) -> Check:
    """Can every job that was ever meant to be submitted be read, and how do they stand?"""
    folder = node.settings.folder / "jobs"
    jobs, damaged = read_jobs(folder)
    if damaged:
        found, _, advice = damaged[0].partition("; ")
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        return Check("ledger", "fail", found + more, advice)
    if not jobs:
        return Check("ledger", "skipped", "no jobs yet")
    states = Counter(job.entry.state for job in jobs)
    said = f"{len(jobs)} jobs: " + ", ".join(f"{count} {state}" for state, count in states.items())
    bad = sum(job.needs_person for job in jobs)
    if bad:
        advice = f"look: llm-qfl jobs {node.settings.folder}; let one run again with --again KEY"
        return Check("ledger", "warn", f"{said}; {bad} ended without a result", advice)
    open_jobs = sum(job.is_open for job in jobs)
    return Check("ledger", "ok", said + (f"; {open_jobs} are looked up by the next run" if open_jobs else ""))


def check_budget(node: Node) -> Check:
    """QPU seconds that are left of the site's own limit, and what a run may take of them."""
    jobs, damaged = read_jobs(node.settings.folder / "jobs")
    if damaged:
        return Check("QPU budget", "fail", "not known: the ledger is damaged", "see the line of the ledger")
    spent = sum(job.entry.seconds for job in jobs)
    run, own = node.config.quantum.qpu_seconds, node.settings.qpu_seconds
    said = f"{spent:.1f} s spent or under way; a run may take {run:.1f} s"
    if own is None:
        advice = "set qpu-seconds in node config: the site's own limit over all runs"
        uses = any(name.startswith("ibm:") for name in node.places)
        return Check("QPU budget", "warn" if uses else "ok", f"{said}, the site sets no limit", advice if uses else "")
    left = max(own - spent, 0.0)
    said += f", the site {own:.1f} s over all runs: {left:.1f} s left"
    if left == 0:
        return Check("QPU budget", "fail", said, "raise qpu-seconds in node config, or leave the QPU out")
    return Check("QPU budget", "warn" if left < run else "ok", said, "a whole run may not fit" if left < run else "")


def _check_device(node: Node, name: str, config: QuantumConfig, classes: int, rows: int) -> list[Check]:
    from llm_qfl.quantum.circuits import build_circuit
    from llm_qfl.quantum.sampled.angles import AngleCircuit
    from llm_qfl.quantum.sampled.ibm import IbmPointRunner
    from llm_qfl.quantum.scope import Place

    model = build_circuit(config, classes)
    angles = AngleCircuit(model)
    place = Place(node.settings.folder, node.settings.qpu_seconds)
    with closing(IbmPointRunner(config, angles, model, place)) as points:
        made = guarded(name, lambda: Check(name, "ok", str(points.runner(config.shots))))
        if made[0].status == "fail":
            return made
        runner = points.runner(config.shots)
        account = guarded("IBM account", lambda: _account(runner))
        if account[0].status == "fail":
            return [*account, Check(name, "skipped", "not asked: no account")]
        fits = guarded(name, lambda: _lines(name, runner, points.work(_points(1, angles)), slice(1, 2)))
        if fits[0].status == "fail" and not fits[0].found.startswith("BudgetError"):
            return [*account, *fits]
        cost, what = f"cost on {name}", _step(node, angles, rows)
        if fits[0].status == "fail":
            return [*account, *guarded(name, lambda: _lines(name, runner, None, slice(1, 2))), _renamed(fits[0], cost)]
        work = points.work(_points(what[0], angles))
        step = guarded(cost, lambda: _lines(cost, runner, work, slice(2, 3), what[1]))
        return [*account, *fits, *step]


def _account(runner: Any) -> Check:  # noqa: ANN401
    service = runner.connect()
    return Check("IBM account", "ok", f"{service.account.source} is accepted")


def _lines(name: str, runner: Any, work: Any, which: slice, before: str = "") -> Check:  # noqa: ANN401
    """Preflight's own words; it spends nothing."""
    said = "; ".join(line.partition(": ")[2] for line in runner.preflight(work, _RUN)[which])
    return Check(name, "ok", before + said)


def _points(count: int, angles: Any) -> Any:  # noqa: ANN401
    return np.broadcast_to(np.zeros(len(angles.angles)), (count, len(angles.angles)))


def _step(node: Node, angles: Any, rows: int) -> tuple[int, str]:  # noqa: ANN401
    """Points of one training step, and what it is in words."""
    training = node.config.training
    rows = min(rows, training.batch_size) if training.batch_size else rows
    per_row = {"adam": 2 * len(angles.trained) + 1, "spsa": 2, "cobyla": 1}[training.optimizer]
    said = f"a step of {training.optimizer} over {rows} rows ({training.steps} steps a round): "
    return rows * per_row, said


def _renamed(check: Check, name: str) -> Check:
    return Check(name, check.status, check.found, check.advice)
