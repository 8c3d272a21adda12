import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from llm_qfl.federation.errors import FederationError
from server_app.grid import NO_REPLY, BoundedGrid
from simulation.grid import InMemoryGrid


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def echo_app():
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(RecordDict({"meta": ConfigRecord({"node": context.node_id})}), reply_to=message)

    return app


def bounded(faults=None):
    clock = Clock()
    inner = InMemoryGrid(echo_app(), {1: {}, 2: {}, 3: {}}, {}, faults)
    return BoundedGrid(inner, clock=clock, sleep=clock.sleep), clock


def ask(grid, timeout):
    messages = [Message(RecordDict(), dst_node_id=n, message_type="query") for n in (1, 2, 3)]
    return grid.send_and_receive(messages, timeout=timeout)


def test_a_silent_node_is_named_after_the_deadline_and_no_later():
    grid, clock = bounded({2: lambda task, reply: None})
    replies = ask(grid, timeout=10.0)
    assert [r.content["meta"]["node"] for r in replies] == [1, 3]
    assert grid.failed[2].code == NO_REPLY
    assert 10.0 <= clock.now < 10.5


def test_an_error_from_node_1_belongs_to_the_node_that_was_asked():
    def lost(task, reply):
        error = Message(Error(5, "Node Unavailable"), reply_to=task)
        error.metadata.__dict__["_src_node_id"] = 1
        return error

    grid, _ = bounded({3: lost})
    assert len(ask(grid, timeout=1.0)) == 2
    assert grid.failed[3].code == 5
    assert set(grid.failed) == {3}


def test_too_few_nodes_end_the_wait_with_what_to_do():
    grid, clock = bounded()
    assert sorted(grid.wait_for(3, 5.0)) == [1, 2, 3]
    with pytest.raises(FederationError, match=r"waited 5 s .* for 4 sites, 3 came"):
        grid.wait_for(4, 5.0)
    assert clock.now < 6.0


def test_an_empty_exchange_keeps_the_last_failures():
    grid, _ = bounded({2: lambda task, reply: None})
    ask(grid, timeout=1.0)
    assert grid.send_and_receive([]) == []
    assert 2 in grid.failed
