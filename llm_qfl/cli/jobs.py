"""`llm-qfl jobs`: the site's ledger of IBM Quantum jobs, and a person's word that one may be submitted again."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_qfl.federation.errors import ConfigError
from llm_qfl.federation.settings import default_folder, ledger_folder
from llm_qfl.quantum.ibm.errors import LedgerError
from llm_qfl.quantum.ibm.ledger import Entry, Ledger

_KEY_DIGITS = 8
_WIDE = 110


@dataclass(frozen=True)
class Job:
    """One entry of the ledger.

    Attributes:
        entry: as it is on disk.
        changed: when its file was written last, local time.
    """

    entry: Entry
    changed: datetime

    @property
    def needs_person(self) -> bool:
        """It ended without a result or is lost, and is not replaced on its own."""
        return self.entry.needs_person

    @property
    def is_open(self) -> bool:
        """A job may exist at the service whose result is not here yet."""
        return self.entry.state in ("submitting", "submitted")

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        entry = self.entry
        about = asdict(entry)
        intent = about.pop("intent")
        return {
            "key": entry.intent.key,
            **{name: intent[name] for name in ("run", "site", "round", "step", "backend")},
            **about,
            "tag": entry.tag,
            "qpu_seconds": entry.seconds,
            "qpu_seconds_held": entry.held,
            "qpu_seconds_known": "qpu_seconds" in entry.metrics,
            "changed": self.changed.isoformat(timespec="seconds"),
            "needs_person": self.needs_person,
        }


def jobs_folder(folder: Path | None) -> Path:
    """The ledger's folder of a node's folder, of itself, or of the default node folder."""
    chosen = folder or default_folder()
    return chosen if chosen.name == "jobs" and not (chosen / "jobs").is_dir() else ledger_folder(chosen)


def read_jobs(folder: Path) -> tuple[list[Job], list[str]]:
    """The jobs by run, round and time, and a message for each file that is damaged; makes nothing.

    Args:
        folder: the ledger's; may be missing.
    """
    if not folder.is_dir():
        return [], []
    ledger, jobs, damaged = Ledger(folder), [], []
    for path in sorted(folder.glob("?" * 40 + ".json")):
        try:
            entry, changed = ledger.get(path.stem), path.stat().st_mtime
        except LedgerError as error:
            damaged.append(str(error))
            continue
        if entry is not None:
            jobs.append(Job(entry, datetime.fromtimestamp(changed).astimezone()))
    jobs.sort(key=lambda job: (job.entry.intent.run, job.entry.intent.round, job.changed, job.entry.intent.step))
    return jobs, damaged


def run_again(folder: Path, key: str) -> Entry:
    """Let a job that ended badly be submitted again, by the run that asks for it next.

    Args:
        folder: the ledger's.
        key: or its first digits, where no other begins so.

    Raises:
        ConfigError: no such key, or several.
        LedgerError: the job did not end badly, or a process is at work on it.
    """
    jobs, damaged = read_jobs(folder)
    found = [job.entry.intent.key for job in jobs if key and job.entry.intent.key.startswith(key)]
    if len(found) != 1:
        broken = f" ({len(damaged)} files there are damaged)" if damaged else ""
        raise ConfigError(
            f"--again: expected the key of one job in {folder}, {key!r} is that of {len(found)}{broken}; see the list"
        )
    ledger = Ledger(folder)
    with ledger.lock(found[0]):
        return ledger.again(found[0])


def as_json(jobs: Sequence[Job], damaged: Sequence[str]) -> str:
    """Jobs, totals of each run, and damaged files."""
    totals = {run: _totals(of_run) for run, of_run in _by_run(jobs).items()}
    return json.dumps({"jobs": [job.as_dict() for job in jobs], "runs": totals, "damaged": list(damaged)}, indent=1)


def show(folder: Path, jobs: Sequence[Job], damaged: Sequence[str], console: Console) -> None:
    """A table for each run, its totals, and below all what needs a person."""
    console.print(Text(f"{folder}: {len(jobs)} jobs" if jobs else f"{folder}: no jobs"), soft_wrap=True)
    for run, of_run in _by_run(jobs).items():
        console.print(Text(f"\nrun {run}", style="bold"))
        console.print(_table(of_run, wide=console.width >= _WIDE))
        console.print(Text(_sentence(_totals(of_run))))
    bad, place = [job for job in jobs if job.needs_person], shlex.quote(str(folder))
    if bad:
        console.print(Text("\nneeds a person: without a result, and not replaced on its own", style="bold"))
    for job in bad:
        entry, key = job.entry, job.entry.intent.key[:_KEY_DIGITS]
        console.print(Text(f"  {key} {entry.state}: {entry.reason or 'no reason given'}"))
        console.print(Text(f"    pay for another attempt: llm-qfl jobs {place} --again {key}"), soft_wrap=True)
    for message in damaged:
        console.print(Text(f"\ndamaged: {message}", style="bold red"))


def _table(jobs: Sequence[Job], *, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("key", no_wrap=True)
    table.add_column("round", justify="right")
    table.add_column("step", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("QPU s", justify="right", no_wrap=True)
    table.add_column("job", overflow="fold")
    if wide:
        table.add_column("device", overflow="fold")
        table.add_column("circuits x shots", justify="right")
        table.add_column("submitted", no_wrap=True)
        table.add_column("queue s", justify="right")
    for job in jobs:
        entry = job.entry
        state = f"{entry.state} !" if job.needs_person else entry.state
        seconds = f"{entry.seconds:.1f}" if _known(entry) else f"~{entry.seconds:.1f}"
        cells = [entry.intent.key[:_KEY_DIGITS], str(entry.intent.round), entry.intent.step, state, seconds,
                 entry.job_id or "-"]  # fmt: skip
        if wide:
            queue = entry.metrics.get("queue_seconds")
            size = f"{entry.circuits} x {entry.shots}" if entry.circuits else "-"
            cells += [entry.device or "-", size, _submitted(entry), "-" if queue is None else f"{queue:.0f}"]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _submitted(entry: Entry) -> str:
    """Local time."""
    return f"{datetime.fromisoformat(entry.submitted).astimezone():%m-%d %H:%M}" if entry.submitted else "-"


def _known(entry: Entry) -> bool:
    return entry.state == "intent" or "qpu_seconds" in entry.metrics


def _by_run(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    runs: dict[str, list[Job]] = {}
    for job in jobs:
        runs.setdefault(job.entry.intent.run, []).append(job)
    return runs


def _totals(jobs: Sequence[Job]) -> dict[str, Any]:
    estimated = sum(job.entry.estimate for job in jobs if not _known(job.entry))
    return {
        "jobs": len(jobs),
        "states": dict(Counter(job.entry.state for job in jobs)),
        "qpu_seconds": sum(job.entry.seconds for job in jobs),
        "qpu_seconds_estimated": estimated,
        "attempts": sum(job.entry.attempt + 1 for job in jobs),
    }


def _sentence(total: dict[str, Any]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in total["states"].items())
    about = (
        f", of which {total['qpu_seconds_estimated']:.1f} s (~) are our estimate"
        if total["qpu_seconds_estimated"]
        else ""
    )
    return f"{total['jobs']} jobs: {states}; {total['qpu_seconds']:.1f} s of QPU time{about}"
