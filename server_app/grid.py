"""BoundedGrid: quick polling, failures mapped to the right node, every wait bounded.

Flower's own `send_and_receive` polls each 3 s, its `sample_nodes` waits for ever, and an error for a dead node comes
from node 1; here an error belongs to the node that was asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from llm_qfl.federation.errors import FederationError

NO_REPLY = 1000  # our own code, outside Flower's 0 to 8
FIRST_POLL, LAST_POLL = 0.02, 0.25  # seconds; a pull is a request to the SuperLink


class BoundedGrid(Grid):
    """A Grid around a Grid.

    Args:
        inner: the grid that Flower gives to the ServerApp.
        clock: seconds, monotonic; tests give their own.
        sleep: waits that many seconds.
    """

    def __init__(
        self, inner: Grid, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._inner, self._clock, self._sleep = inner, clock, sleep
        self.failed: dict[int, Error] = {}
        """Node -> error, of the latest exchange that sent anything."""

    def set_run(self, run: Run) -> None:
        """See Grid."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """See Grid."""
        return self._inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See Grid."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See Grid."""
        return self._inner.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See Grid."""
        return self._inner.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Grid."""
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Grid."""
        return self._inner.pull_messages(message_ids)

    def wait_for(self, count: int, seconds: float) -> list[int]:
        """Node ids, once at least `count` are there.

        Raises:
            FederationError: fewer after `seconds`.
        """
        end, pause = self._clock() + seconds, FIRST_POLL
        while len(nodes := list(self.get_node_ids())) < count:
            if self._clock() > end:
                raise FederationError(
                    f"waited {seconds:.0f} s (server.wait) for {count} sites, {len(nodes)} came; "
                    "start the SuperNodes, or lower server.sites"
                )
            self._sleep(pause)
            pause = min(2 * pause, LAST_POLL)
        return nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send, and wait for the replies until `timeout` seconds have passed; `failed` says who gave none and why."""
        tasks = list(messages)
        if not tasks:
            return []
        self.failed = {}
        waiting: dict[str, Message] = {}
        for message_id, task in zip(self._inner.push_messages(tasks), tasks, strict=True):
            if message_id:
                waiting[message_id] = task
            else:
                self.failed[task.metadata.dst_node_id] = Error(NO_REPLY, "the SuperLink did not take the message")
        replies: list[Message] = []
        end, pause = None if timeout is None else self._clock() + timeout, FIRST_POLL
        while waiting:
            for reply in self._inner.pull_messages(list(waiting)):
                asked = waiting.pop(reply.metadata.reply_to_message_id, None)
                if asked is None:
                    continue  # not an answer to this exchange
                if reply.has_error():
                    self.failed[asked.metadata.dst_node_id] = reply.error
                else:
                    replies.append(reply)
            if not waiting or (end is not None and self._clock() >= end):
                break
            self._sleep(pause)
            pause = min(1.5 * pause, LAST_POLL)
        for task in waiting.values():
            self.failed[task.metadata.dst_node_id] = Error(NO_REPLY, f"no reply within {timeout:.0f} s")
        return replies
