import threading
import time

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from llm_qfl.federation.errors import FederationError
from server_app.grid import NO_REPLY, BoundedGrid
from simulation.grid import Delayed, InMemoryGrid


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


def ask(grid, timeout, nodes=(1, 2, 3), ttl=None):
    ttl = timeout if ttl is None else ttl
    messages = [Message(RecordDict(), dst_node_id=n, message_type="query", ttl=ttl) for n in nodes]
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


def nodes_of(replies):
    return [reply.content["meta"]["node"] for reply in replies]


def once(**when):
    """Only the first reply of the node is late."""
    left = [1]
    return lambda task, reply: Delayed(reply, **when) if left and left.pop() else reply


def test_a_message_outlives_its_exchange_and_its_answer_comes_with_a_later_one():
    grid, clock = bounded({2: once(exchanges=2)})
    assert nodes_of(ask(grid, 10.0, ttl=3600.0)) == [1, 3]
    assert grid.failed[2].reason == "no reply within 10 s"
    assert grid.busy == {2}
    assert nodes_of(ask(grid, 10.0, nodes=(1, 3), ttl=3600.0)) == [1, 3]
    assert grid.busy == {2}
    assert not grid.failed
    started = clock.now
    assert sorted(nodes_of(ask(grid, 10.0, nodes=(1, 3), ttl=3600.0))) == [1, 2, 3]
    assert clock.now == started  # taken along, not waited for
    assert grid.busy == frozenset()
    assert ask(grid, 10.0, nodes=()) == []


def test_with_nothing_to_send_the_late_ones_are_waited_for_and_no_longer_than_the_deadline():
    grid, clock = bounded({1: once(pulls=60), 2: lambda task, reply: None})
    assert nodes_of(ask(grid, 10.0, nodes=(1, 2), ttl=3600.0)) == []
    assert nodes_of(ask(grid, 10.0, nodes=())) == [1]
    assert grid.busy == {2}
    assert 20.0 <= clock.now < 21.0


def test_when_its_time_to_live_has_passed_a_message_is_not_asked_for_any_more():
    grid, clock = bounded({2: lambda task, reply: None})
    ask(grid, 10.0, ttl=15.0)
    assert grid.send_and_receive([], timeout=None) == []  # bounded, even without a timeout
    assert grid.failed[2].reason == "no reply within 15 s"
    assert grid.busy == frozenset()
    assert 15.0 <= clock.now < 15.5


def test_a_busy_node_that_dies_is_a_failure_of_the_exchange_that_sees_it():
    clock = Clock()
    inner = InMemoryGrid(echo_app(), {1: {}, 2: {}}, {}, {2: once(exchanges=9)})
    grid = BoundedGrid(inner, clock=clock, sleep=clock.sleep)
    ask(grid, 10.0, nodes=(1, 2), ttl=3600.0)
    inner.leave(2)
    assert nodes_of(ask(grid, 10.0, nodes=(1,))) == [1]
    assert grid.failed[2].code == 5
    assert grid.busy == frozenset()


def test_forgotten_nodes_are_not_asked_for():
    grid, _ = bounded({2: once(exchanges=1), 3: once(exchanges=1)})
    ask(grid, 10.0, ttl=3600.0)
    grid.forget([2])
    assert nodes_of(ask(grid, 10.0, nodes=(1,))) == [3, 1]


def test_an_exchange_that_brings_only_errors_waits_for_the_late_ones():
    def broken(task, reply):
        return Message(Error(2, "boom"), reply_to=task)

    grid, clock = bounded({1: broken, 2: once(pulls=60), 3: broken})
    assert nodes_of(ask(grid, 10.0, ttl=3600.0)) == []
    assert nodes_of(ask(grid, 10.0, nodes=(1, 3), ttl=3600.0)) == [2]
    assert {node: error.code for node, error in grid.failed.items()} == {1: 2, 3: 2}
    assert 10.0 < clock.now < 20.0


def test_asking_apart_leaves_open_messages_and_their_errors_alone():
    def silent(task, reply):
        return None if task.metadata.group_id == "apart" else reply

    def broken(task, reply):
        return Message(Error(2, "boom"), reply_to=task) if task.metadata.group_id == "apart" else reply

    grid, clock = bounded({1: once(exchanges=2), 2: broken, 3: silent})
    ask(grid, 10.0, nodes=(1,), ttl=3600.0)
    failed = dict(grid.failed)
    apart = [Message(RecordDict(), dst_node_id=n, message_type="query", group_id="apart", ttl=5.0) for n in (1, 2, 3)]
    started = clock.now
    assert nodes_of(grid.ask(apart, 5.0)) == [1]
    assert 5.0 <= clock.now - started < 5.5
    assert grid.busy == {1}
    assert grid.failed == failed
    assert sorted(nodes_of(ask(grid, 10.0, nodes=(2,), ttl=3600.0))) == [1, 2]


def test_waiting_ends_when_it_is_so_or_when_the_time_is_over():
    grid, clock = bounded()
    grid.wait_until(lambda: clock.now > 2.0, 10.0)
    assert 2.0 < clock.now < 2.5
    grid.wait_until(lambda: False, 3.0)
    assert clock.now == pytest.approx(5.0, abs=0.5)


def test_an_answer_that_does_not_end_holds_up_neither_the_others_nor_the_deadline(monkeypatch):
    """Flower waits for the rest of an answer whose node was cut off in the middle of it."""
    grid, _ = bounded()
    over, pull = threading.Event(), grid._inner.pull_messages

    def pull_messages(ids):
        replies = list(pull(ids))
        if any(reply.metadata.src_node_id == 2 for reply in replies):
            over.wait(30)
        return replies

    monkeypatch.setattr(grid._inner, "pull_messages", pull_messages)
    began = time.monotonic()
    assert nodes_of(ask(grid, timeout=3, ttl=1000)) == [1, 3]
    assert time.monotonic() - began < 20
    assert grid.failed[2].code == NO_REPLY
    assert grid.busy == {2}
    over.set()
    assert sorted(nodes_of(ask(grid, timeout=3, nodes=(1,), ttl=1000))) == [1, 2]  # late, as other late ones
