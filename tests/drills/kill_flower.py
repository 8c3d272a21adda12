"""Kill drill through Flower's nodes: ClientApps die over paid work; nothing is paid twice, nothing is lost.

    python tests/drills/kill_flower.py
    python tests/drills/kill_flower.py --node

A SuperLink and three SuperNodes on this machine, every site on the loopback service. In round 1 each site's ClientApp
is ended by SIGKILL at another point. Flower tells the server after about 66 s that it has crashed (its heartbeats are
not configurable); the server sends the same task again, and the new ClientApp finds its jobs in the site's ledger.

With `--node` one site's SuperNode and all its processes are ended while a job is queued, as when a machine restarts. It
is started again and has another node id; the server takes it for the site that it says it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
from rich.console import Console
from stage import kill

from llm_qfl.cli.deploy_check import bounded, start_supernode, to_toml
from llm_qfl.cli.flower import environment, start_superlink
from llm_qfl.cli.launch import new_log_folder, submit
from llm_qfl.cli.processes import Processes
from llm_qfl.cli.screen import Screen
from llm_qfl.quantum.ibm.errors import LedgerError

HOLD, QUEUE = 1.0, 3.0  # seconds; until the kills are done
LIMIT = 200.0  # seconds for the kills
CONFIG = {
    "server.rounds": 2,
    "language.model": "none",
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
    whole_node: bool = False
    killed: float | None = None


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


def node_drills() -> list[Drill]:
    return [Drill("one", "SuperNode, job queued", 1, queued, pause=QUEUE / 2, whole_node=True)]


class Nodes(Processes):
    """A SuperNode that ends is no reason to end the run."""

    def check(self) -> None:
        """Whether the run succeeds is seen in its folder."""


def victims_of(drill: Drill) -> list[psutil.Process]:
    """The ClientApp that works on the site's task, somewhere below its SuperNode; or the node with all that it has."""
    for node in psutil.Process().children(recursive=True):
        try:
            command = " ".join(node.cmdline())
            if "flower-supernode" not in command or f'site="{drill.site}"' not in command:
                continue
            children = node.children(recursive=True)
            apps = [child for child in children if any(part.endswith("flwr-clientapp") for part in child.cmdline())]
        except psutil.NoSuchProcess:
            continue
        if apps:
            return [node, *children] if drill.whole_node else apps
    return []


def watch(drill: Drill, service: LoopbackService, start_again: Callable[[], None], over: threading.Event) -> None:
    """Kill at the site's point, once; a SuperNode is started again."""
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
        victims = victims_of(drill)
        if not victims:
            continue
        kill(victims)
        drill.killed = time.monotonic()
        if drill.whole_node:
            time.sleep(1.0)
            start_again()
            over.wait()  # Linux ends a child of ours with the thread that started it
        return


def run(scratch: Path, parts: list[Drill]) -> tuple[LoopbackService, Path]:
    """The federation with its kills; the service, and the run folder."""
    _, files = write_sequences(scratch, [part.site for part in parts], 40)
    nodes = {}
    for part in parts:
        part.folder = scratch / f"node-{part.site}"
        (part.folder / "jobs").mkdir(parents=True)
        nodes[part.site] = {"site": part.site, "data-path": str(files[part.site]), "backend": "ibm:loop_manila",
                            "folder": str(part.folder)}  # fmt: skip
    service, home = LoopbackService(queue=QUEUE, runtime=0.1), PROJECT / ".flwr"
    service.hold = HOLD
    config = CONFIG | {"server.sites": len(parts), "server.output": str(scratch / "runs")}
    logs, over = new_log_folder(home), threading.Event()
    with (
        service_in_environment(service),
        Nodes(logs, environment(home, PROJECT), PROJECT) as processes,
        Screen(Console()) as screen,
    ):
        address = start_superlink(processes, simulation=False)
        for node in nodes.values():
            start_supernode(processes, address, node)
        watchers = [
            threading.Thread(
                target=watch,
                args=(part, service, partial(start_supernode, processes, address, nodes[part.site]), over),
                daemon=True,
            )
            for part in parts
        ]

        def ease() -> None:
            while not all(part.killed for part in parts):
                time.sleep(0.05)
            service.hold, service.queue = 0.0, 0.1

        for thread in [*watchers, threading.Thread(target=ease, daemon=True)]:
            thread.start()
        with bounded(LIMIT + 150):
            folder = submit(processes, PROJECT, to_toml(config), screen)
        over.set()
    return service, folder


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
        code = 5 if part.whole_node else 8
        assert reason.endswith(f"(code {code}); task of round 1 is sent again"), reason
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
    parser.add_argument("--node", action="store_true", help="a whole SuperNode in place of three ClientApps")
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch:
        parts = node_drills() if asked.node else drills()
        service, folder = run(Path(scratch), parts)
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
