"""The stage of a drill: a federation of real Flower processes on this machine, and the lives of one run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from subprocess import Popen

import numpy as np
import psutil
from replay import Line, play

from llm_qfl.cli.deploy_check import to_toml, write_site_files
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
from llm_qfl.federation.config import Scalar
from llm_qfl.federation.errors import FederationError

AGAIN = 10.0  # seconds from a start of a node that has ended to the next one
SPREAD = 6.0  # seconds after a closed round, within which a disturbance falls: a round of real nodes takes about five
CONFIG: Mapping[str, Scalar] = {
    "server.rounds": 3,
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


def start_link(
    processes: Processes,
    port: int,
    database: Path,
    isolation: str = "subprocess",
    more: Mapping[str, str] | None = None,
) -> Popen[str]:
    """A SuperLink at this port, with what it knew before; `more` of its environment."""
    command = ["flower-superlink", "--insecure", "--isolation", isolation, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--database", str(database)]
    link = processes.start("superlink", command, environment={**processes.environment, **(more or {})})
    processes.wait_until(lambda: healthy(f"127.0.0.1:{port}"), "the SuperLink answers", START_SECONDS)
    return link


def below(parent: Popen[str], command: str) -> list[psutil.Process]:
    """The processes of this name that a child has started, directly or not."""
    found = []
    for child in psutil.Process(parent.pid).children(recursive=True):
        try:
            if any(part.endswith(command) for part in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """All of them, at once."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def kill_tree(parent: Popen[str]) -> None:
    """A child with all that it has started, as when its container dies."""
    kill([psutil.Process(parent.pid), *psutil.Process(parent.pid).children(recursive=True)])
    parent.wait()


class Stage:
    """A SuperLink, a SuperNode for each site, and the lives of one run.

    Args:
        processes: where the children belong.
        scratch: folder for everything.
        sites: their names.
        config: run-config keys beside `CONFIG`.
        isolated: executors are processes of their own, as where the nodes are deployed in earnest.
    """

    def __init__(
        self,
        processes: Processes,
        scratch: Path,
        sites: Sequence[str],
        config: Mapping[str, Scalar],
        *,
        isolated: bool = False,
    ) -> None:
        self.processes, self.scratch, self.sites = processes, scratch, tuple(sites)
        self.runs, self.port, self.isolated = scratch / "runs", free_port(), isolated
        output: dict[str, Scalar] = {"server.sites": len(self.sites), "server.output": str(self.runs)}
        self.config: dict[str, Scalar] = {**CONFIG, **output, **config}
        self._files, self._app = write_site_files(scratch), stage_app(project_folder(), processes.logs)
        self.nodes: dict[str, dict[str, Scalar]] = {
            site: {"site": site, "data-path": str(self._files[site]), "folder": str(scratch / site)}
            for site in self.sites
        }
        self.children: dict[str, Popen[str]] = {}
        self.times: dict[int, float] = {}
        """Closed round -> when that was first seen, monotonic seconds."""
        self.tended = False
        """Nodes that end are started again, as a container engine does."""
        self._tried: dict[str, float] = {}
        self._more: dict[str, Mapping[str, str]] = {}
        self._life: Popen[str] | None = None
        self._lives = 0

    @property
    def address(self) -> str:
        """Of the SuperLink."""
        return f"127.0.0.1:{self.port}"

    @property
    def isolation(self) -> str:
        """As Flower's commands call it."""
        return "process" if self.isolated else "subprocess"

    def open(self, more: Mapping[str, str] | None = None) -> None:
        """The SuperLink and its executor; `more` of their environment."""
        database = self.scratch / "link.db"
        self.children["superlink"] = start_link(self.processes, self.port, database, self.isolation, more)
        write_connection(self.processes.logs, self.address)
        if self.isolated:
            self.start_executor("server", self.address)

    def start_node(self, site: str, *, port: int | None = None, more: Mapping[str, str] | None = None) -> None:
        """A site's SuperNode and its executor.

        Args:
            site: its name.
            port: under which it finds the SuperLink; default: the SuperLink's own.
            more: of its environment.
        """
        self._tried[site], self._more[site] = time.monotonic(), more or {}
        own, link = free_port(), f"127.0.0.1:{port or self.port}"
        command = ["flower-supernode", "--insecure", "--isolation", self.isolation, "--superlink", link]
        command += ["--host", "127.0.0.1", "--port", str(own), "--node-config", to_toml(self.nodes[site])]
        env = {**self.processes.environment, **self._more[site]}
        self.children[site] = self.processes.start(f"site-{site}", command, environment=env)
        if self.isolated:
            self.start_executor(site, f"127.0.0.1:{own}")

    def start_executor(self, name: str, address: str = "") -> None:
        """The executor (SuperExec) of a site, or of the server; again at the same address where none is named."""
        key = f"superexec-{name}"
        before = self.children.get(key)
        address = address or str(before.args[-1])  # type: ignore[union-attr, index]
        command = ["flower-superexec", "--insecure", "--runtime-api-address", address]
        self.children[key] = self.processes.start(key, command)

    def submit(self, resume: Path | None = None) -> None:
        """`flwr run`, of a new run or of one that goes on."""
        config = self.config if resume is None else {**self.config, "server.resume": str(resume)}
        name, self._lives = f"flwr-run-{self._lives}", self._lives + 1
        command, env = run_command(self._app, to_toml(config), None), command_environment(self.processes)
        self._life, self._log = self.processes.start(name, command, environment=env), self.processes.log(name)

    def give_up_run(self) -> None:
        """End the `flwr run` whose server is gone: it would wait until the SuperLink has noticed."""
        assert self._life is not None
        self._life.kill()
        self._life.wait()

    @property
    def said(self) -> str:
        """What the run has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def folder(self) -> Path | None:
        """The run folder, once it is there."""
        folders = [path for path in self.runs.glob("*") if (path / "checkpoint").is_dir()]
        return folders[0] if folders else None

    @property
    def closed(self) -> int:
        """Rounds that the checkpoint counts; -1 without one."""
        try:
            assert self.folder is not None
            return int(json.loads((self.folder / "checkpoint" / "checkpoint.json").read_bytes())["round"])
        except (AssertionError, FileNotFoundError):
            return -1

    @property
    def lines(self) -> list[Line]:
        """Of the ledger, as far as they are whole."""
        path = (self.folder or self.runs) / "rounds.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def look(self) -> None:
        """Note when rounds are closed; start again what is tended."""
        self.times.setdefault(self.closed, time.monotonic())
        for site in self.sites if self.tended else ():
            if self.children[site].poll() is not None and time.monotonic() > self._tried[site] + AGAIN:
                self.start_node(site, more=self._more[site])

    def wait(self, ready: Callable[[], bool]) -> None:
        """Until it is so.

        Raises:
            FederationError: the run ended before.
        """
        while not ready():
            self.look()
            if self._life is not None and self._life.poll() is not None and not ready():
                raise FederationError(f"the run ended before what was waited for: {self.said[-2000:]}")
            time.sleep(0.1)
        self.look()

    def wait_for_round(self, closed: int) -> None:
        """Until so many rounds are closed."""
        self.wait(lambda: self.closed >= closed)

    def pause(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.look()
            time.sleep(min(0.1, left))

    def carry_on(self) -> tuple[Path, int]:
        """Until the run has reached its end; one that fails goes on by `server.resume`. The folder, and how often."""
        times = 0
        while True:
            try:
                return self.wait_for_end(), times
            except FederationError:
                if times == 3:
                    raise
                times += 1
                self.submit(resume=self.folder)

    def wait_for_failure(self) -> None:
        """Until the run has ended before its end."""
        while self._life is not None and self._life.poll() is None:
            self.look()
            if self._finished():
                raise FederationError("the run came to its end")
            time.sleep(0.1)

    def undisturbed(self, lines: Sequence[Line] = ()) -> np.ndarray:
        """The final vector (P,) of the same sites in one process; with the late and lost replies of `lines`, if any."""
        nodes = [{**self.nodes[site], "folder": str(self.scratch / "in-memory")} for site in self.sites]
        return play(self.config, nodes, lines)

    def wait_for_end(self) -> Path:
        """Until the run's page is written; the run folder."""
        self.wait(self._finished)
        self.look()
        assert self.folder is not None
        return self.folder

    def _finished(self) -> bool:
        try:
            assert self.folder is not None
            status = json.loads((self.folder / "summary.json").read_text())["status"]
        except (AssertionError, FileNotFoundError):
            return False
        return status != "failed" and (self.folder / "report.html").exists()


def stage_of(scratch: Path, sites: Sequence[str], config: Mapping[str, Scalar], **more: bool) -> Stage:
    """A stage whose processes are ended by `with stage.processes`."""
    project = project_folder()
    home = project / ".flwr"
    logs = new_log_folder(home)
    logs.mkdir(parents=True)
    return Stage(Drill(logs, environment(home, project), project), scratch, sites, config, **more)
