"""The sites of a drill in one process: nobody disturbs them, or what a ledger calls late and lost is so here, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Error, Message

from client_app.app import app as client_app
from llm_qfl.federation.config import RunConfig, Scalar, default_run_config
from llm_qfl.federation.types import GlobalState, RoundSummary
from server_app.session import Opened, run_session
from simulation.grid import InMemoryGrid
from simulation.run import Memory

LATE_ROUND = 0.3  # seconds that a round of a replay waits for what does not come
Line = Mapping[str, Any]


def play(config: Mapping[str, Scalar], nodes: Sequence[Mapping[str, Scalar]], lines: Sequence[Line]) -> np.ndarray:
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
        self, nodes: Mapping[int, Mapping[str, Scalar]], config: Mapping[str, Scalar], lines: Sequence[Line]
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
        freed = self._freed(site, number)
        if freed is None:
            return None
        self._due[task.metadata.message_id] = freed
        error = Message(Error(8, "lost, as the ledger says"), reply_to=task)
        error.metadata.__dict__["_src_node_id"] = task.metadata.dst_node_id
        return error

    def _freed(self, site: str, number: int) -> int | None:
        """The round in which the server took a site's task of an earlier round for lost; None where it never did."""
        later = [self._lines[one] for one in sorted(self._lines) if one > number]
        busy = number
        for line in later:
            if site in line["plan"]["sites"]:
                return busy
            if site in line["busy"]:
                busy = line["round"]
        return None if busy > number else number


class _Turner(Memory):
    """Tells a replay which round it is."""

    def __init__(self, grid: Replay) -> None:
        super().__init__()
        self._grid = grid

    def begin(self, opened: Opened) -> None:
        self._grid.turn(0)

    def close_round(self, summary: RoundSummary, state: GlobalState) -> None:
        self._grid.turn(summary.server_round)
