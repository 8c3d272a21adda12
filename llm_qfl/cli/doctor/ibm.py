"""IBM Quantum before anything is spent: whose account, which device, what a step costs, what is left, what is open."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from llm_qfl.cli.doctor.check import Check, guarded
from llm_qfl.cli.doctor.data import Rows
from llm_qfl.cli.doctor.node import Node
from llm_qfl.cli.jobs import read_jobs
from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import BackendError
from llm_qfl.federation.settings import ledger_folder

ACCOUNT_ADVICE = "set QISKIT_IBM_TOKEN or LLM_QFL_IBM_TOKEN_FILE, or save an account with qiskit-ibm-runtime"
NETWORK_ADVICE = "IBM's client says the same where it reaches nobody: check the network as well"
DEVICE_ADVICE = "name a device of the account that is up and wide enough, or ibm:least-busy; or lower quantum.qubits"
COST_ADVICE = 'fewer training.steps, rows (training.batch-size) or quantum.shots, training.optimizer="spsa", or more'
COST_ADVICE += " QPU seconds"
_RUN = "llm-qfl-doctor"
"""No run is called so: a new run has spent nothing yet."""


def check_ibm(node: Node, rows: Rows, *, offline: bool) -> list[Check]:
    """Account, device and cost, for every device that the site uses.

    Args:
        node: as configured.
        rows: of the site.
        offline: ask nobody; look only at what is on this machine.
    """
    devices = {name: config for name, config in node.places.items() if name.startswith("ibm:")}
    if not devices:
        return [Check("IBM account", "skipped", "no ibm: backend is configured")]
    if offline:
        asked = [Check(name, "skipped", "not asked (--offline)") for name in devices]
        return [*guarded("IBM account", check_account_here), *asked]
    lines: list[Check] = []
    with _without_log():
        for name, config in devices.items():
            lines += guarded(name, partial(_check_device, node, config, rows))
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
    jobs, damaged = read_jobs(ledger_folder(node.settings.folder))
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
        advice = f"look: llm-qfl jobs {shlex.quote(str(node.settings.folder))}; let one run again with --again KEY"
        return Check("ledger", "warn", f"{said}; {bad} ended without a result", advice)
    open_jobs = sum(job.is_open for job in jobs)
    return Check("ledger", "ok", said + (f"; {open_jobs} are looked up by the next run" if open_jobs else ""))


def check_budget(node: Node) -> Check:
    """QPU seconds that are left of the site's own limit, and what a run may take of them."""
    jobs, damaged = read_jobs(ledger_folder(node.settings.folder))
    if damaged:
        return Check("QPU budget", "fail", "not known: the ledger is damaged", "see the line of the ledger")
    jobs = [job for job in jobs if job.entry.intent.site == node.settings.site]
    spent = sum(job.entry.held for job in jobs)
    run, own = node.config.quantum.qpu_seconds, node.settings.qpu_seconds
    said = f"{spent:.1f} s spent or under way; a run may take {run:.1f} s"
    uses = any(name.startswith("ibm:") for name in node.places)
    if not uses and not jobs:
        return Check("QPU budget", "skipped", "no ibm: backend is configured, and nothing was ever spent")
    if own is None:
        advice = "set qpu-seconds in node config: the site's own limit over all runs"
        return Check("QPU budget", "warn" if uses else "ok", f"{said}, the site sets no limit", advice if uses else "")
    left = max(own - spent, 0.0)
    said += f", the site {own:.1f} s over all runs: {left:.1f} s left"
    if left == 0:
        return Check("QPU budget", "fail", said, "raise qpu-seconds in node config, or leave the QPU out")
    return Check("QPU budget", "warn" if left < run else "ok", said, "a whole run may not fit" if left < run else "")


def _check_device(node: Node, config: QuantumConfig, rows: Rows) -> list[Check]:
    from llm_qfl.quantum.circuits import build_circuit
    from llm_qfl.quantum.sampled.angles import AngleCircuit
    from llm_qfl.quantum.sampled.ibm import IbmPointRunner
    from llm_qfl.quantum.scope import Place

    name, model = config.backend, build_circuit(config, rows.classes)
    angles, place = AngleCircuit(model), Place(node.settings.folder, node.settings.qpu_seconds)
    with closing(IbmPointRunner(config, angles, model, place)) as points:
        runner = points.runner(config.shots)

        def work(count: int) -> Any:  # noqa: ANN401
            return points.work(np.broadcast_to(np.zeros(len(angles.angles)), (count, len(angles.angles))))

        account = guarded("IBM account", lambda: _account(runner))
        if account[0].status == "fail":
            advised = replace(account[0], advice=f"{account[0].advice}; {NETWORK_ADVICE}")
            return [advised, Check(name, "skipped", "not asked: no account")]
        device = guarded(name, lambda: _device(name, runner, work(1), node.settings.site), DEVICE_ADVICE)
        if device[0].status == "fail":
            return [*account, *device]
        one = _training_step(node, angles, rows) if name == node.quantum.backend else _scoring(rows)
        cost = guarded(f"cost on {name}", lambda: _cost(name, runner, work, one, node.settings.site))
    return [*account, *device, *cost]


def _account(runner: Any) -> Check:  # noqa: ANN401
    return Check("IBM account", "ok", f"{runner.connect().account.source} is accepted")


def _device(name: str, runner: Any, work: Any, site: str) -> Check:  # noqa: ANN401
    from llm_qfl.quantum.ibm.errors import BudgetError

    try:
        lines = runner.preflight(work, _RUN, site)
    except BudgetError:  # the device would take it; the cost has a line of its own
        lines = runner.preflight()
    return Check(name, "ok", lines[1].partition(": ")[2])


def _cost(name: str, runner: Any, work: Callable[[int], Any], task: _Task, site: str) -> Check:  # noqa: ANN401
    """Of one step, which must be within the budgets, and whether a round's steps are.

    Raises:
        BudgetError: a step is not, with the sum.
    """
    from llm_qfl.quantum.ibm.errors import BudgetError

    told = runner.preflight(work(task.points), _RUN, site)[2].partition(": ")[2]
    said = f"{task.name}: " + told.replace(" rows,", " points,")  # the runner's rows are the circuit's points
    try:
        runner.preflight(work(task.points * task.times), _RUN, site)
    except BudgetError as error:
        over = str(error).partition(";")[0]
        return Check(f"cost on {name}", "warn", f"{said}; {task.times} of these a round: {over}", COST_ADVICE)
    return Check(f"cost on {name}", "ok", said + (f"; {task.times} of these a round" if task.times > 1 else ""))


@dataclass(frozen=True)
class _Task:
    """What costs: in words, points of the circuit, and how often in a round."""

    name: str
    points: int
    times: int = 1


def _training_step(node: Node, angles: Any, rows: Rows) -> _Task:  # noqa: ANN401
    training, count = node.config.training, max(rows.train, 1)
    count = min(count, training.batch_size) if training.batch_size else count
    per_row = {"adam": 2 * len(angles.trained) + 1, "spsa": 2, "cobyla": 1}[training.optimizer]
    return _Task(f"a step of {training.optimizer} over {count} rows", count * per_row, training.steps)


def _scoring(rows: Rows) -> _Task:
    count = max(rows.validation, 1)
    return _Task(f"scoring {count} validation rows once", count)


@contextmanager
def _without_log() -> Iterator[None]:
    """IBM's client warns of every login with a token; what matters is in the lines."""
    log = logging.getLogger("qiskit_ibm_runtime")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
