"""BoundedGrid: quick polling, failures mapped to the right node, every wait bounded.

Flower's own `send_and_receive` polls each 3 s, its `sample_nodes` waits for ever, and an error for a dead node comes
from node 1; here an error belongs to the node that was asked. A message may outlive its exchange: as long as its time
to live has not passed, its answer is asked for in the exchanges that follow.

Flower's `pull_messages` waits for the rest of an answer that a node has begun to send, three minutes after it was last
heard of and longer while it sends. So each answer is pulled apart, in a thread of its own: a node that is cut from the
network in mid-answer holds up neither the others nor the deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from threading import Thread

from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from llm_qfl.federation.errors import FederationError

NO_REPLY, NOT_TAKEN = 1000, 999  # our own codes, outside Flower's 0 to 8
FIRST_POLL, LAST_POLL, LONG_POLL = 0.02, 0.25, 5.0  # seconds; a pull is a request to the SuperLink
PULLS = 100.0  # a second, at most: each open answer is a request of its own
PULL = 1.0  # seconds that an exchange gives a pull before it looks at the clock again


@dataclass(frozen=True)
class _Asked:
    """A message without an answer."""

    node: int
    until: float
    """When its time to live has passed, on the grid's clock."""
    ttl: float


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
        self._unanswered: dict[str, _Asked] = {}
        self._pulls: dict[str, Future[list[Message]]] = {}
        self.failed: dict[int, Error] = {}
        """Node -> error, of the latest exchange that sent or waited for anything."""

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

    def now(self) -> float:
        """Seconds on this grid's clock."""
        return self._clock()

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Return once it is so, or after so many seconds."""
        end, pause = self._clock() + seconds, FIRST_POLL
        while not ready() and (left := end - self._clock()) > 0:
            self._sleep(min(pause, left))
            pause = min(2 * pause, LAST_POLL)

    def ask(self, messages: Iterable[Message], seconds: float) -> list[Message]:
        """Answers that come within so many seconds, errors left out; what else is unanswered is not touched."""
        open_ = {key for key in self._inner.push_messages(messages) if key}
        replies: list[Message] = []

        def answered() -> bool:
            for reply in self._inner.pull_messages(list(open_)):
                open_.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            return not open_

        self.wait_until(answered, seconds)
        return [reply for reply in replies if not reply.has_error()]

    @property
    def busy(self) -> frozenset[int]:
        """Nodes that have a message of an earlier exchange, still valid, to answer."""
        return frozenset(asked.node for asked in self._unanswered.values())

    def forget(self, nodes: Iterable[int]) -> None:
        """Ask no longer for what these nodes have not answered."""
        gone = set(nodes)
        self._unanswered = {key: asked for key, asked in self._unanswered.items() if asked.node not in gone}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send, and wait for the replies until `timeout` seconds have passed; `failed` says who gave none and why.

        Late answers to earlier messages are taken along but not waited for, unless nothing is sent or nothing sent
        is answered but with errors: then the exchange waits for them.
        """
        tasks = list(messages)
        if not tasks and not self._unanswered:
            return []
        self.failed = {}
        started, pause = self._clock(), FIRST_POLL
        end = None if timeout is None else started + timeout
        sent = self._push(tasks, started)
        awaited = set(sent)
        self._unanswered |= sent
        replies: list[Message] = []
        while self._unanswered:
            replies += self._pull()
            now = self._clock()
            self._expire(now)
            awaited &= set(self._unanswered)
            if not awaited and not replies:
                awaited = set(self._unanswered)
            if not awaited or (end is not None and now >= end):
                break
            self._sleep(pause if end is None else min(pause, end - now))
            # Who has waited for hours may wait a second more: a hundredth of the time, not four requests a second.
            slowest = max(LAST_POLL, len(self._unanswered) / PULLS, min((now - started) / 100, LONG_POLL))
            pause = min(1.5 * pause, slowest)
        for key in awaited:
            self.failed[self._unanswered[key].node] = Error(NO_REPLY, f"no reply within {timeout:.0f} s")
        return replies

    def _push(self, tasks: list[Message], now: float) -> dict[str, _Asked]:
        sent: dict[str, _Asked] = {}
        for key, task in zip(self._inner.push_messages(tasks) if tasks else [], tasks, strict=True):
            node, ttl = task.metadata.dst_node_id, task.metadata.ttl
            if key:
                sent[key] = _Asked(node, now + ttl, ttl)
            else:
                self.failed[node] = Error(NOT_TAKEN, "the SuperLink did not take the message")
        return sent

    def _pull(self) -> list[Message]:
        """What has come; an error frees its node and goes to `failed`."""
        replies: list[Message] = []
        for reply in self._pulled():
            asked = self._unanswered.pop(reply.metadata.reply_to_message_id, None)
            if asked is None:
                continue  # not an answer to anything that was asked, or the second one
            if reply.has_error():
                self.failed[asked.node] = reply.error
            else:
                replies.append(reply)
        return replies

    def _pulled(self) -> list[Message]:
        """What the pulls bring that end now; those of other answers go on."""
        for key in self._unanswered:
            if key not in self._pulls:
                self._pulls[key] = _in_thread(self._inner, key)
        wait(self._pulls.values(), PULL)
        ended = [key for key, pull in self._pulls.items() if pull.done()]
        return [reply for key in ended for reply in self._pulls.pop(key).result()]

    def _expire(self, now: float) -> None:
        for key, asked in list(self._unanswered.items()):
            if now >= asked.until:
                del self._unanswered[key]
                self.failed.setdefault(asked.node, Error(NO_REPLY, f"no reply within {asked.ttl:.0f} s"))


def _in_thread(grid: Grid, key: str) -> Future[list[Message]]:
    """Pull the answer to one message in a thread that ends with the process."""
    pull: Future[list[Message]] = Future()

    def work() -> None:
        try:
            pull.set_result(list(grid.pull_messages([key])))
        except BaseException as error:  # noqa: BLE001  raised where the result is taken
            pull.set_exception(error)

    Thread(target=work, daemon=True, name=f"pull {key[:8]}").start()
    return pull
