"""What a job costs, and what the service and the site allow, before anything is spent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil
from typing import Any

from llm_qfl.quantum.ibm.errors import BudgetError, PreflightError
from llm_qfl.quantum.ibm.ledger import Ledger

OVERHEAD_SECONDS = 2.0
"""QPU seconds of a job beside its executions (IBM's guide "Workload usage": an estimate, not a price)."""
DEFAULT_REP_DELAY = 250e-6


@dataclass(frozen=True)
class Budgets:
    """QPU seconds; None means no limit.

    Attributes:
        run: of this site in one run, over all its rounds.
        site: of this site, over all runs in its ledger. The site's own limit always holds.
    """

    run: float | None = None
    site: float | None = None

    def check(
        self, ledger: Ledger, run: str | None, estimate: float, own: Collection[str] = (), site: str | None = None
    ) -> float | None:
        """Call under the ledger's lock `budget`.

        Args:
            ledger: of the node's folder, which may hold several sites' jobs.
            run: or None, where only the site's budget counts.
            estimate: QPU seconds of what shall run.
            own: keys of it, whose earlier reservations do not count.
            site: whose budgets these are; None counts all in the ledger.

        Returns:
            QPU seconds that it may take before a limit is passed, at least the estimate, or None without a limit.

        Raises:
            BudgetError: with the sum.
        """
        limits = [] if self.site is None else [("site", self.site, ledger.spent(None, own, site))]
        limits += [] if self.run is None or run is None else [("run", self.run, ledger.spent(run, own, site))]
        for whose, limit, spent in limits:
            if spent + estimate > limit:
                raise BudgetError(
                    f"QPU budget of the {whose}: {spent:.1f} s spent or under way + {estimate:.1f} s estimated = "
                    f"{spent + estimate:.1f} s, more than {limit:.1f} s; a job counts with the most that it may take "
                    "until the service has told its sum (see llm-qfl jobs); fewer shots or rows, or a larger budget; "
                    "nothing was spent"
                )
        return min((limit - spent for _, limit, spent in limits), default=None)

    @property
    def limited(self) -> bool:
        """Is there a limit at all?"""
        return self.run is not None or self.site is not None


@dataclass(frozen=True)
class Limits:
    """What one job may hold (IBM's guide "Job limits"); the device's own limit of shots comes from its configuration.

    Attributes:
        executions: circuits times shots, after broadcasting.
    """

    executions: int = 10_000_000


def rows_per_job(limits: Limits, executions_per_row: int, fixed: int) -> int:
    """So that a batch takes the fewest jobs.

    Raises:
        PreflightError: one row is too much.
    """
    rows = (limits.executions - fixed) // executions_per_row
    if rows < 1:
        raise PreflightError(
            f"one row needs {executions_per_row + fixed} executions, a job takes {limits.executions}; "
            "take fewer shots; nothing was spent"
        )
    return rows


def qpu_seconds(executions: int, backend: Any, circuit: Any) -> float:  # noqa: ANN401
    """IBM's rule of thumb: overhead + (delay between executions + circuit's length) x executions.

    Args:
        executions: circuits times shots.
        backend: an IBMBackend.
        circuit: transpiled for it.
    """
    delay = getattr(backend.configuration(), "default_rep_delay", None)
    seconds = DEFAULT_REP_DELAY if delay is None else float(delay)
    return OVERHEAD_SECONDS + executions * (seconds + circuit_seconds(circuit, backend.target))


def circuit_seconds(circuit: Any, target: Any) -> float:  # noqa: ANN401
    """Length of an ISA circuit along its busiest qubit, with one read-out, from the device's calibration."""
    ends = dict.fromkeys(circuit.qubits, 0.0)
    for step in circuit.data:
        qubits = tuple(circuit.find_bit(bit).index for bit in step.qubits)
        end = max((ends[bit] for bit in step.qubits), default=0.0) + _duration(target, step.operation.name, qubits)
        ends.update(dict.fromkeys(step.qubits, end))
    readout = 0.0
    if "measure" in target.operation_names and "measure" not in circuit.count_ops():
        readout = max(_duration(target, "measure", (qubit,)) for qubit in range(target.num_qubits))
    return max(ends.values(), default=0.0) + readout


def device_problems(backend: Any, qubits: int, shots: int) -> list[str]:  # noqa: ANN401
    """Why this device cannot run circuits this wide with so many shots, one line each."""
    status, problems = backend.status(), []
    if not status.operational or status.status_msg != "active":
        problems.append(f"{backend.name} is not running jobs (status {status.status_msg!r})")
    if problem := device_width_problem(backend, qubits):
        problems.append(problem)
    most = getattr(backend.configuration(), "max_shots", None)
    if most is not None and shots > most:
        problems.append(f"{shots} shots, {backend.name} takes at most {most}")
    return problems


def device_width_problem(backend: Any, qubits: int) -> str | None:  # noqa: ANN401
    """Why circuits this wide do not fit, or None."""
    if qubits <= backend.num_qubits:
        return None
    return f"the circuit has {qubits} qubits, {backend.name} has {backend.num_qubits}"


def twirled_shots(shots: int, twirled: bool) -> int:
    """Shots after the client has rounded them up to whole randomizations (its `TwirlingOptions`, both on auto)."""
    if not twirled:
        return shots
    each = max(64, ceil(shots / 32))
    return each * ceil(shots / each)


def _duration(target: Any, name: str, qubits: tuple[int, ...]) -> float:  # noqa: ANN401
    if name not in target.operation_names:
        return 0.0
    properties = target[name].get(qubits) if target[name] is not None else None
    return float(getattr(properties, "duration", None) or 0.0)
