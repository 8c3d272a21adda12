"""Kill drill through Flower's nodes: ClientApps die over paid work; nothing is paid twice, nothing is lost.

    python tests/drills/kill_flower.py

A SuperLink and three SuperNodes on this machine, every site on the loopback service. In round 1 each site's ClientApp
is ended by SIGKILL at another point. Flower tells the server after about 66 s that it has crashed (its heartbeats are
not configurable); the server sends the same task again, and the new ClientApp finds its jobs in the site's ledger.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from ibm_service.loopback import Job, LoopbackService
from ibm_service.sites import (
    PROJECT,
    costs_of,
    entries_of,
    rounds_of,
    service_in_environment,
    write_sequences,
)

from llm_qfl.cli.deploy_check import deploy
from llm_qfl.quantum.ibm.errors import LedgerError

HOLD, QUEUE = 1.0, 3.0  # seconds; until the kills are done
LIMIT = 200.0  # seconds for the kills
CONFIG = {
    "server.sites": 3,
    "server.rounds": 2,
    "server.deadline": 200.0,
    "data.test": "federated",
    "quantum.layers": 1,
    "quantum.qubits": 3,
    "quantum.shots": 256,
    "training.steps": 2,
    "training.batch-size": 4,
    "data.min-rows": 5,
}


@dataclass
class Drill:
    """One site's part: when its ClientApp is killed, and when that happened."""

    site: str
    point: str
    job: int
    """Of the task, from 0: the kill falls into its life."""
    when: Callable[[LoopbackService, str, Job | None], bool]
    """Told the entry's state and the job, if the service has it."""
    pause: float = 0.0
    folder: Path = field(default_factory=Path)
    killed: float | None = None
    job_known: bool = False


def during_the_call(service: LoopbackService, state: str, job: Job | None) -> bool:
    return state == "submitting"


def queued(service: LoopbackService, state: str, job: Job | None) -> bool:
    return state == "submitted" and job is not None and job.status() == "Queued"


def ready(service: LoopbackService, state: str, job: Job | None) -> bool:
    return state == "submitted" and job is not None and job.status() == "Completed"


def drills() -> list[Drill]:
    return [
        Drill("one", "during the submit call", 0, during_the_call, pause=HOLD / 2),
        Drill("two", "while queued", 1, queued, pause=QUEUE / 2),
        Drill("three", "result ready, not fetched", 2, ready),
    ]


def client_app_of(site: str) -> psutil.Process | None:
    """The process that works on the site's task: somewhere below its SuperNode."""
    for node in psutil.Process().children(recursive=True):
        try:
            command = " ".join(node.cmdline())
            if "flower-supernode" not in command or f'site="{site}"' not in command:
                continue
            for child in node.children(recursive=True):
                if any(part.endswith("flwr-clientapp") for part in child.cmdline()):
                    return child
        except psutil.NoSuchProcess:
            continue
    return None


def watch(drill: Drill, service: LoopbackService) -> None:
    """Kill the site's ClientApp at its point, once."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        time.sleep(0.02)
        try:
            entries = entries_of(drill.folder)
        except LedgerError:
            continue
        open_ = [entry for entry in entries if entry.state in ("submitting", "submitted")]
        if len(entries) != drill.job + 1 or len(open_) != 1:
            continue
        (entry,) = open_
        job = next(iter(service.by_tag(entry.tag)), None)
        if not drill.when(service, entry.state, job):
            continue
        time.sleep(drill.pause)
        process = client_app_of(drill.site)
        if process is None:
            continue
        process.kill()
        drill.killed, drill.job_known = time.monotonic(), bool(service.by_tag(entry.tag))
        return


def run(scratch: Path) -> tuple[list[Drill], LoopbackService, Path]:
    """The federation with its kills; the sites' parts, the service, and the run folder."""
    parts = drills()
    _, files = write_sequences(scratch, [part.site for part in parts], 40)
    nodes = []
    for part in parts:
        part.folder = scratch / f"node-{part.site}"
        (part.folder / "jobs").mkdir(parents=True)
        nodes.append({"site": part.site, "data-path": str(files[part.site]), "backend": "ibm:loop_manila",
                      "folder": str(part.folder)})  # fmt: skip
    service = LoopbackService(queue=QUEUE, runtime=0.1)
    service.hold = HOLD
    watchers = [threading.Thread(target=watch, args=(part, service), daemon=True) for part in parts]

    def ease() -> None:
        for watcher in watchers:
            watcher.join()
        service.hold, service.queue = 0.0, 0.1

    threads = [*watchers, threading.Thread(target=ease, daemon=True)]
    with service_in_environment(service):
        for thread in threads:
            thread.start()
        folder = deploy(PROJECT, nodes, CONFIG | {"server.output": str(scratch / "runs")})
        for thread in threads:
            thread.join(LIMIT)
    return parts, service, folder


def verdict(parts: list[Drill], service: LoopbackService, folder: Path) -> list[tuple[str, str, int, int, int]]:
    """Rows (site, point, kills, submitted twice, lost); a job is lost whose result no accepted answer has counted.

    Raises:
        AssertionError: what was killed was not sent again, or the books do not agree.
    """
    assert service.errors == [], service.errors
    first, second = rounds_of(folder)[:2]
    costs, rows = costs_of(folder), []
    for part in parts:
        assert part.killed is not None, f"{part.site}: nobody was killed {part.point}"
        reason = first["rejected"][part.site]
        assert reason.endswith("(code 8); task of round 1 is sent again"), reason
        entries = entries_of(part.folder)
        jobs = [job for entry in entries for job in service.by_tag(entry.tag)]
        done = {entry.job_id for entry in entries if entry.state == "done"}
        counted = min(int(costs[part.site]["jobs"]), len(done & {job.id for job in jobs}))
        rows.append((part.site, part.point, 1, len(jobs) - len(entries), len(jobs) - counted))
    late = [(work["site"], work["of_round"]) for work in second["late"]]
    assert late == sorted((part.site, 1) for part in parts), late
    assert [one["site"] for one in second["entered"]] == sorted(part.site for part in parts)
    total = sum(len(entries_of(part.folder)) for part in parts)
    books = (total, len(service.jobs), service.posts(), sum(int(cost["jobs"]) for cost in costs.values()))
    assert len(set(books)) == 1, f"entries, jobs, submissions that arrived, jobs in reports: {books}"
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill ClientApps of real Flower nodes over jobs on IBM Quantum")
    parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch:
        parts, service, folder = run(Path(scratch))
        rows = verdict(parts, service, folder)
        seconds = [line["seconds"] for line in rounds_of(folder)]
    print(f"{'site':8}{'point':30}  kills  twice  lost")
    total = ("all", "", *(sum(row[column] for row in rows) for column in (2, 3, 4)))
    for site, point, *numbers in [*rows, total]:
        print(f"{site:8}{point:30}  {numbers[0]:5}  {numbers[1]:5}  {numbers[2]:4}")
    print(f"{len(service.jobs)} jobs; rounds took {', '.join(f'{s:.0f} s' for s in seconds)}")
    print(f"{time.monotonic() - started:.0f} s")
    return int(total[3] > 0 or total[4] > 0)


if __name__ == "__main__":
    sys.exit(main())
