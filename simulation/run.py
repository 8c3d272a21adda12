"""One call, one federation: the real strategy and the real client round, without Flower's processes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.decisions import Decision
from client_app.app import app as client_app
from llm_qfl.federation.config import RunConfig, Scalar, default_run_config
from llm_qfl.federation.types import Array, GlobalState, RoundSummary
from server_app.book import FolderBook
from server_app.display import make_display
from server_app.ledger import Ledger
from server_app.progress import Progress
from server_app.report import write_report
from server_app.resume import read_run, resume_folder
from server_app.session import Finished, Opened, run_session
from server_app.summary import summary_json
from simulation.grid import Fault, InMemoryGrid


@dataclass(frozen=True, eq=False)
class Federation:
    """What a run in memory leaves.

    Attributes:
        finished: everything the server knew.
        summary: the contract's summary.
        folder: the run folder, or None where none was asked for.
    """

    finished: Finished
    summary: Mapping[str, Any]
    folder: Path | None

    @property
    def theta(self) -> Array:
        """The final vector (P,)."""
        return self.finished.state.theta


class Memory:
    """A book that keeps nothing: `Finished` holds the rounds."""

    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id or f"in-memory-{secrets.token_hex(4)}"

    def note(self, text: str) -> None:
        """Nothing to show."""

    def begin(self, opened: Opened) -> None:
        """Nothing to write."""

    def close_round(self, summary: RoundSummary, state: GlobalState) -> None:
        """Nothing to write."""

    def decided(self, decision: Decision, reward: float | None, reward_round: int | None) -> None:
        """Nothing to write: `Finished.opened.decider` holds the decisions."""

    def checkpoint(self, progress: Progress) -> None:
        """Nothing to write."""

    def record(self, decision: Decision) -> None:
        """Nothing to write."""


def run_federation(
    run_config: Mapping[str, Scalar] | None = None,
    *,
    sites: int = 4,
    nodes: Sequence[Mapping[str, Scalar]] | None = None,
    output: Path | None = None,
    show: str = "none",
    faults: Mapping[int, Fault] | None = None,
) -> Federation:
    """Run a whole federation in this process.

    Args:
        run_config: keys that differ from the defaults.
        sites: simulated sites, each with its partition of the pool.
        nodes: or the node config of each real-like site (`site`, `data-path`).
        output: folder that receives the run folder; None writes nothing.
        show: `none`, or what `server.show` takes.
        faults: node id (from 1) -> what happens to its replies.

    Raises:
        LlmQflError: as the server app does.
    """
    flat = {**default_run_config(), **(run_config or {})}
    config = RunConfig.from_run_config(flat)
    if nodes is None:
        nodes = [{"partition-id": n, "num-partitions": sites} for n in range(sites)]
    grid = InMemoryGrid(client_app, {n + 1: node for n, node in enumerate(nodes)}, flat, faults)
    before = resume_folder(config)
    if output is None and before is None:
        finished = run_session(grid, config, Memory())
        return Federation(finished, summary_json("in-memory", finished), None)
    return run_in_folder(grid, config, output, show)


def run_in_folder(grid: InMemoryGrid, config: RunConfig, output: Path | None, show: str = "none") -> Federation:
    """A run with its folder: a new one below `output`, or the one that `server.resume` names.

    Raises:
        LlmQflError: as the server app does.
    """
    before = resume_folder(config)
    resumed = None if before is None else read_run(before, config)
    ledger = Ledger.create(output or Path("runs")) if resumed is None else Ledger.reopen(resumed.folder)
    with closing(ledger):
        display = make_display(show)
        book = FolderBook(ledger, display)
        finished = run_session(grid, config, book, resumed)
        summary = book.finish(finished)
        write_report(ledger.folder)
        display.finish(summary, ledger.folder)
    return Federation(finished, summary, ledger.folder)
