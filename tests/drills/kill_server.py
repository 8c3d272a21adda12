"""Kill drill of the server, through Flower's nodes: it dies twice, goes on twice, and nobody can tell from the weights.

    python tests/drills/kill_server.py
    python tests/drills/kill_server.py --seed 3

A SuperLink with a database and two SuperNodes on this machine, each with its own rows. At a random moment the
ServerApp's process is ended by SIGKILL, and `flwr run` with `server.resume` goes on. At another one the SuperLink goes
with it; it is started again at its port, the nodes come back by themselves, and the run goes on once more. The final
weights must be those of the same sites in one process that nobody interrupts, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import numpy as np
import psutil
from rich.console import Console

from llm_qfl.cli.deploy_check import bounded, start_supernode, to_toml, write_site_files
from llm_qfl.cli.flower import (
    START_SECONDS,
    command_environment,
    environment,
    healthy,
    project_folder,
    run_command,
    stage_app,
    write_connection,
)
from llm_qfl.cli.launch import new_log_folder
from llm_qfl.cli.processes import Processes, free_port
from llm_qfl.cli.screen import Screen
from llm_qfl.federation.config import Scalar
from llm_qfl.federation.errors import FederationError, RunFolderError
from server_app.checkpoint import read_checkpoint
from simulation.run import run_federation

SITES = ("alpha", "beta")
SERVER_APP, EVERYTHING = "ServerApp", "SuperLink and ServerApp"
SPREAD = 6.0  # seconds after a checkpoint, within which the kill falls: a round of real nodes takes about five
CONFIG: Mapping[str, Scalar] = {
    "server.sites": len(SITES),
    "server.rounds": 5,
    "server.deadline": 240.0,
    "language.model": "none",
    "data.test": "federated",
    "quantum.qubits": 2,
    "quantum.layers": 1,
    "training.steps": 2,
    "training.batch-size": 8,
}


class Drill(Processes):
    """A process that ends is no reason to end the drill."""

    def check(self) -> None:
        """Whether the run succeeds is seen in its folder."""


def start_link(processes: Processes, port: int, database: Path) -> Popen[str]:
    """A SuperLink at this port, with what it knew before."""
    command = ["flower-superlink", "--insecure", "--isolation", "subprocess", "--host", "127.0.0.1"]
    link = processes.start("superlink", [*command, "--port", str(port), "--database", str(database)])
    processes.wait_until(lambda: healthy(f"127.0.0.1:{port}"), "the SuperLink answers", START_SECONDS)
    return link


def closed_rounds(folder: Path) -> int:
    """Of the checkpoint; -1 without one."""
    try:
        return read_checkpoint(folder).server_round
    except RunFolderError:
        return -1


def run_folder(runs: Path) -> Path | None:
    """The one run folder below `runs`, once it is there."""
    folders = [path for path in runs.glob("*") if path.is_dir()]
    return folders[0] if folders else None


def server_apps(link: Popen[str]) -> list[psutil.Process]:
    """The ServerApp's processes below a SuperLink."""
    found = []
    for child in psutil.Process(link.pid).children(recursive=True):
        try:
            if any(part.endswith("flwr-serverapp") for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill(processes: list[psutil.Process]) -> None:
    """All of them, at once."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


@dataclass
class Kill:
    """One death of the server.

    Attributes:
        victim: what was killed.
        closed: rounds that the folder then held.
        again: seconds from the command that goes on to the next closed round.
    """

    victim: str
    closed: int
    again: float = 0.0


class Life:
    """One `flwr run` of the federation, begun or gone on with."""

    def __init__(self, processes: Processes, app: Path, config: Mapping[str, Scalar], number: int) -> None:
        self.began, self.log = time.monotonic(), processes.log(f"flwr-run-{number}")
        command = run_command(app, to_toml(config), None)
        self.child = processes.start(f"flwr-run-{number}", command, environment=command_environment(processes))

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until it is so.

        Raises:
            FederationError: the run ended before.
        """
        while not ready():
            if self.child.poll() is not None:
                raise FederationError(f"the run ended before the kill came: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def wait_for_round(self, folder: Path, closed: int) -> float:
        """Until the folder's checkpoint is of a later round; seconds since this life began."""
        self.wait(lambda: closed_rounds(folder) > closed)
        return time.monotonic() - self.began

    def wait_for_end(self, folder: Path) -> None:
        """Until the run's page is written."""
        while not (folder / "report.html").exists():
            if self.child.poll() not in (None, 0):
                raise FederationError(f"the run failed: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)


def drill(scratch: Path, seed: int) -> tuple[Path, list[Kill]]:
    """The run with its two kills: the run folder, and how it was killed."""
    moments, runs, kills = random.Random(seed), scratch / "runs", list[Kill]()
    project = project_folder()
    home, files, port = project / ".flwr", write_site_files(scratch), free_port()
    config = {**CONFIG, "server.output": str(runs)}
    with Drill(new_log_folder(home), environment(home, project), project) as processes, Screen(Console()):
        link = start_link(processes, port, scratch / "superlink.db")
        write_connection(processes.logs, f"127.0.0.1:{port}")
        for site in SITES:
            node = {"site": site, "data-path": str(files[site]), "folder": str(scratch / site)}
            start_supernode(processes, f"127.0.0.1:{port}", node)
        app = stage_app(project, processes.logs)
        life = Life(processes, app, config, 0)
        life.wait(lambda: run_folder(runs) is not None)
        folder = run_folder(runs)
        assert folder is not None
        life.wait_for_round(folder, -1)  # the checkpoint before the first round
        for number, victim in enumerate((SERVER_APP, EVERYTHING), start=1):
            time.sleep(moments.uniform(0, SPREAD))
            kill_server(link, life.child, everything=victim == EVERYTHING)
            kills.append(Kill(victim, closed_rounds(folder)))
            if victim == EVERYTHING:
                link = start_link(processes, port, scratch / "superlink.db")
            life = Life(processes, app, {**config, "server.resume": str(folder)}, number)
            kills[-1].again = life.wait_for_round(folder, kills[-1].closed)
        life.wait_for_end(folder)
    return folder, kills


def kill_server(link: Popen[str], run: Popen[str], *, everything: bool) -> None:
    """SIGKILL to the ServerApp, or to the SuperLink with all that it has started.

    Raises:
        FederationError: there is none to kill.
    """
    victims = server_apps(link)
    if not victims:
        raise FederationError("no ServerApp to kill: the run is over, or has not begun")
    if everything:
        victims = [psutil.Process(link.pid), *psutil.Process(link.pid).children(recursive=True)]
    kill([*victims, psutil.Process(run.pid)])  # `flwr run` would wait until the SuperLink has noticed
    run.wait()
    if everything:
        link.wait()


def verdict(scratch: Path, folder: Path, kills: list[Kill]) -> bool:
    """Is the run that was killed the run that was not?

    Raises:
        AssertionError: lines are missing or doubled, or a site is.
    """
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, int(CONFIG["server.rounds"]) + 1)), lines
    for line in lines:
        assert sorted(client["site"] for client in line["clients"]) == sorted(SITES), line["rejected"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["resumed_after"] == [one.closed for one in kills], summary["resumed_after"]
    nodes = [{"site": site, "data-path": str(scratch / f"{site}.csv"), "folder": str(scratch / "m")} for site in SITES]
    whole = run_federation(dict(CONFIG), nodes=nodes)
    with np.load(folder / "model" / "weights.npz", allow_pickle=False) as weights:
        return bool(np.array_equal(weights["theta"], whole.theta))


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the server of a federation of real Flower nodes, and go on")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1000), help="of the moments")
    parser.add_argument("--limit", type=float, default=500.0, help="seconds for all three lives")
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drill-") as scratch, bounded(asked.limit):
        folder, kills = drill(Path(scratch), asked.seed)
        equal = verdict(Path(scratch), folder, kills)
        resumed = json.loads((folder / "summary.json").read_text())["resumed_after"]
    print(f"seed {asked.seed}")
    print(f"{'killed':26}{'closed rounds':>14}{'lost':>6}{'seconds to the next line':>26}")
    for one, after in zip(kills, resumed, strict=True):
        print(f"{one.victim:26}{one.closed:14}{one.closed - after:6}{one.again:26.0f}")
    print(f"final weights equal: {'yes' if equal else 'NO'}; {time.monotonic() - started:.0f} s")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
