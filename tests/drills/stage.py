"""What the drills share: a federation of real Flower processes on this machine, disturbed, and how its end is judged.

Every drill ends with the same two questions. Are the final weights those of the same sites in one process that nobody
disturbed? And where they are not and need not be: are they those of the same sites in one process when the replies that
the ledger calls late or lost are late or lost there (`replay`)? A drill whose weights answer no to both has failed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import numpy as np
import psutil
from flwr.app import Error, Message

from client_app.app import app as client_app
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
from llm_qfl.federation.config import RunConfig, Scalar, default_run_config
from llm_qfl.federation.errors import FederationError
from server_app.session import run_session
from simulation.grid import InMemoryGrid
from simulation.run import Memory

SPREAD = 6.0  # seconds after a closed round, within which a disturbance falls: a round of real nodes takes about five
LATE_ROUND = 0.3  # seconds that a round of a replay waits for what does not come
CONFIG: Mapping[str, Scalar] = {
    "server.rounds": 4,
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
        output = {"server.sites": len(self.sites), "server.output": str(self.runs)}
        self.config: dict[str, Scalar] = {**CONFIG, **output, **config}
        self._files, self._app = write_site_files(scratch), stage_app(project_folder(), processes.logs)
        self.nodes: dict[str, dict[str, Scalar]] = {
            site: {"site": site, "data-path": str(self._files[site]), "folder": str(scratch / site)}
            for site in self.sites
        }
        self.children: dict[str, Popen[str]] = {}
        self.times: dict[int, float] = {}
        """Closed round -> when that was first seen, monotonic seconds."""
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
        own, link = free_port(), f"127.0.0.1:{port or self.port}"
        command = ["flower-supernode", "--insecure", "--isolation", self.isolation, "--superlink", link]
        command += ["--host", "127.0.0.1", "--port", str(own), "--node-config", to_toml(self.nodes[site])]
        environment = {**self.processes.environment, **(more or {})}
        self.children[site] = self.processes.start(f"site-{site}", command, environment=environment)
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
    def lines(self) -> list[dict]:
        """Of the ledger, as far as they are whole."""
        path = (self.folder or self.runs) / "rounds.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def look(self) -> None:
        """Note when rounds are closed."""
        self.times.setdefault(self.closed, time.monotonic())

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

    def wait_for_round(self, closed: int) -> None:
        """Until so many rounds are closed."""
        self.wait(lambda: self.closed >= closed)

    def pause(self, seconds: float) -> None:
        """Let so many seconds pass."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.look()
            time.sleep(min(0.1, left))

    def wait_for_failure(self) -> None:
        """Until the run has ended before its end."""
        while self._life is not None and self._life.poll() is None:
            self.look()
            if self.folder is not None and (self.folder / "report.html").exists():
                raise FederationError("the run came to its end")
            time.sleep(0.1)

    def wait_for_end(self) -> Path:
        """Until the run's page is written; the run folder."""
        self.wait(lambda: self.folder is not None and (self.folder / "report.html").exists())
        self.look()
        assert self.folder is not None
        return self.folder


def stage_of(scratch: Path, sites: Sequence[str], config: Mapping[str, Scalar], **more: bool) -> Stage:
    """A stage whose processes are ended by `with stage.processes`."""
    project = project_folder()
    home = project / ".flwr"
    logs = new_log_folder(home)
    logs.mkdir(parents=True)
    return Stage(Drill(logs, environment(home, project), project), scratch, sites, config, **more)


@dataclass(frozen=True)
class Moment:
    """What stood when the disturbance came.

    Attributes:
        lines: of the ledger, for the rounds that were closed.
        over: when the disturbance was over, monotonic seconds; None where it lasts.
    """

    lines: tuple[dict, ...]
    over: float | None

    @property
    def closed(self) -> int:
        """Rounds."""
        return len(self.lines)


def moment(stage: Stage) -> tuple[dict, ...]:
    """The lines of the rounds that are closed now."""
    return tuple(stage.lines[: max(0, stage.closed)])


@dataclass(frozen=True)
class Row:
    """A line of the drills' table.

    Attributes:
        what: the disturbance.
        closed: rounds that were closed when it came.
        lost: of these, how many the end does not have as they were.
        again: seconds from its end to the next closed round with a reply of every site in time; None where it lasts.
        equal: are the final weights those of a run that nobody disturbed?
        explained: or those of a run in which the same replies were late or lost?
        must: equal has to be so.
        note: what else is to be said.
    """

    what: str
    closed: int
    lost: int
    again: float | None
    equal: bool
    explained: bool
    must: bool
    note: str

    @property
    def passed(self) -> bool:
        """As it has to be?"""
        return self.lost == 0 and self.explained and (self.equal or not self.must)


def judge(what: str, stage: Stage, folder: Path, before: Moment, *, must: bool, note: str = "") -> Row:
    """Hold the end of a run against the same sites in one process.

    Raises:
        AssertionError: lines are missing or doubled, or the run has not reached its end.
    """
    lines = stage.lines
    assert [line["round"] for line in lines] == list(range(1, len(lines) + 1)), lines
    assert len(lines) >= int(stage.config["server.rounds"]), len(lines)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished", summary
    lost = sum(was != now for was, now in zip(before.lines, lines, strict=False))
    with np.load(folder / "model" / "weights.npz", allow_pickle=False) as weights:
        theta = weights["theta"]
    nodes = [{**stage.nodes[site], "folder": str(stage.scratch / "in-memory")} for site in stage.sites]
    equal = np.array_equal(theta, play(stage.config, nodes, ()))
    explained = equal or np.array_equal(theta, play(stage.config, nodes, lines))
    return Row(what, before.closed, lost, whole_again(stage, before), equal, explained, must, note)


def whole_again(stage: Stage, before: Moment) -> float | None:
    """See `Row.again`."""
    if before.over is None:
        return None
    for line in stage.lines[before.closed :]:
        when = stage.times.get(line["round"], 0.0)
        if when > before.over and {client["site"] for client in line["clients"]} == set(stage.sites):
            return when - before.over
    return None


def play(config: Mapping[str, Scalar], nodes: Sequence[Mapping[str, Scalar]], lines: Sequence[Mapping]) -> np.ndarray:
    """The final vector (P,) of the same sites in this process.

    Args:
        config: run-config keys.
        nodes: node config of each site.
        lines: of a ledger: replies that were late or lost there are so here; empty disturbs nothing.
    """
    keys = {**default_run_config(), **config, "server.deadline": LATE_ROUND if lines else 240.0, "server.wait": 1.0}
    grid = Replay(dict(enumerate(nodes, start=1)), keys, lines)
    return run_session(grid, RunConfig.from_run_config(keys), grid.book).state.theta


class Replay(InMemoryGrid):
    """The nodes in this process, with what a ledger says of the replies of other ones.

    Args:
        nodes: node config by id.
        config: the run config.
        lines: of the ledger.
    """

    def __init__(
        self, nodes: Mapping[int, Mapping[str, Scalar]], config: Mapping[str, Scalar], lines: Sequence[Mapping]
    ) -> None:
        super().__init__(client_app, nodes, config, dict.fromkeys(nodes, self._fault))
        self._sites = {node: str(about["site"]) for node, about in nodes.items()}
        self._lines = {int(line["round"]): line for line in lines}
        self._due: dict[str, float] = {}
        self._round, self.book = 0, _Turner(self)

    def turn(self, closed: int) -> None:
        """A round is closed."""
        self._round = closed + 1

    def get_node_ids(self) -> Iterable[int]:
        """Those that had a task in this round."""
        there = list(super().get_node_ids())
        line = self._lines.get(self._round)
        if line is None or not line["plan"]["sites"]:
            return there
        taken = {*line["plan"]["sites"], *line["busy"], *(late["site"] for late in line["late"])}
        return [node for node in there if self._sites[node] in taken]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """What the ledger says has come by now."""
        return super().pull_messages([name for name in message_ids if self._due.get(name, 0) <= self._round])

    def _fault(self, task: Message, reply: Message) -> Message | None:
        site, number = self._sites[task.metadata.dst_node_id], int(task.metadata.group_id or 0)
        line = self._lines.get(number)
        if task.metadata.message_type != "train" or line is None:
            return reply
        if any(client["site"] == site for client in line["clients"]):
            return reply
        for later in sorted(self._lines):
            if any((late["site"], late["of_round"]) == (site, number) for late in self._lines[later]["late"]):
                self._due[task.metadata.message_id] = later
                return reply
        if site in self._lines.get(number + 1, {"busy": []})["busy"]:
            return None  # nobody has heard of it since
        error = Message(Error(8, "lost, as the ledger says"), reply_to=task)
        error.metadata.__dict__["_src_node_id"] = task.metadata.dst_node_id
        return error


class _Turner(Memory):
    """Tells a replay which round it is."""

    def __init__(self, grid: Replay) -> None:
        super().__init__()
        self._grid = grid

    def begin(self, opened: object) -> None:
        self._grid.turn(0)

    def close_round(self, summary: object, state: object) -> None:
        self._grid.turn(summary.server_round)  # type: ignore[attr-defined]
