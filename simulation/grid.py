"""InMemoryGrid: each message goes straight to the client app, copied as the wire would copy it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from llm_qfl.federation.config import Scalar


@dataclass(frozen=True)
class Delayed:
    """A reply that is there, but not yet.

    Attributes:
        reply: what arrives in the end.
        exchanges: further pushes until it may be pulled.
        pulls: pulls that ask for it in vain after that.
    """

    reply: Message
    exchanges: int = 0
    pulls: int = 0


# What a test may do to a node's reply: given the task and the honest reply, what arrives (None: nothing) and when.
Fault = Callable[[Message, Message], Message | Delayed | None]


class InMemoryGrid(Grid):
    """A grid over client apps in this process.

    Args:
        app: the client app.
        nodes: node id -> node config.
        run_config: the run config that every node sees.
        faults: node id -> what to do to its replies.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: Mapping[int, Mapping[str, Scalar]],
        run_config: Mapping[str, Scalar],
        faults: Mapping[int, Fault] | None = None,
    ) -> None:
        # Flower refuses to make a Message outside a run; this process is the run.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._app, self._faults, self._count = app, faults or {}, 0
        self._run: Run | None = None
        self._contexts = {
            node: Context(1, node, dict(config), RecordDict(), dict(run_config)) for node, config in nodes.items()
        }
        self._replies: dict[str, Delayed] = {}
        self._gone: set[int] = set()
        self.pushed: list[Metadata] = []
        """Of every message that was pushed, in order."""

    def leave(self, node: int) -> None:
        """The node dies: it is no longer listed, and what it has not answered is answered by Flower's error."""
        self._gone.add(node)

    def set_run(self, run: Run) -> None:
        """See Grid."""
        self._run = run

    @property
    def run(self) -> Run:
        """See Grid."""
        if self._run is None:
            raise RuntimeError("an in-memory grid has no Flower run")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """See Grid."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See Grid."""
        return [node for node in self._contexts if node not in self._gone]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See Grid."""
        return [NodeInfo(node_id=node) for node in self._contexts if node not in self._gone]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run each message's handler at once; the reply waits to be pulled."""
        ids: list[str] = []
        self._replies = {
            name: Delayed(late.reply, max(0, late.exchanges - 1), late.pulls) for name, late in self._replies.items()
        }
        for message in messages:
            self._count += 1
            name = f"message-{self._count}"
            message.metadata.__dict__["_message_id"] = name
            ids.append(name)
            self.pushed.append(message.metadata)
            reply = self._answer(message)
            if reply is not None:
                self._replies[name] = reply if isinstance(reply, Delayed) else Delayed(reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Grid."""
        there: list[Message] = []
        for name in list(message_ids):
            late = self._replies.get(name)
            if late is None:
                continue
            if late.exchanges == 0 and late.pulls == 0:
                there.append(self._replies.pop(name).reply)
            elif late.reply.metadata.src_node_id in self._gone:
                there.append(self._lost(self._replies.pop(name).reply))
            elif late.exchanges == 0:
                self._replies[name] = Delayed(late.reply, 0, late.pulls - 1)
        return there

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See Grid; nothing is waited for, everything is there."""
        return list(self.pull_messages(self.push_messages(messages)))

    @staticmethod
    def _lost(reply: Message) -> Message:
        """Flower's answer for a node that is gone: from node 1, to the message that was asked."""
        error = Message(Error(5, "Node Unavailable"), reply_to=reply)
        error.metadata.__dict__["_src_node_id"] = 1
        error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
        return error

    def _answer(self, message: Message) -> Message | Delayed | None:
        node = message.metadata.dst_node_id
        wire = copy.deepcopy(message)  # the sides share no memory
        try:
            reply = self._app(wire, self._contexts[node])
        except Exception as error:  # noqa: BLE001  as the SuperNode does
            reply = Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=wire)
        # Message() takes the sender from the process, which here plays every node.
        reply.metadata.__dict__["_src_node_id"] = node
        fault = self._faults.get(node)
        return reply if fault is None else fault(message, reply)
