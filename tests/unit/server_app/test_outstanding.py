"""Bookkeeping of open tasks: each reply is read against the state of its own round."""

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

from llm_qfl.federation.records import encode_report
from llm_qfl.federation.types import ClientReport, GlobalState, RoundPlan, Scores, Spent
from server_app.outstanding import RESENDS, Given, Outstanding

NAMES = ("a", "b")
SITES = {11: "north", 12: "south", 13: "west"}


def state(number, *theta):
    return GlobalState(number, np.array(theta, float), NAMES)


def _given(s, until=1e9):
    return Given(s, RoundPlan(s.server_round, (), 1, 0.1), until)


def answer(node, number, theta=(1.0, 2.0), site=None):
    scores = Scores(1.0, np.array([1, 1]), np.array([1, 0]))
    site = site or SITES.get(node, "stranger")
    report = ClientReport(site, number, np.array(theta), 5, scores, scores, 0.5, 0.4, Spent(), 1.0)
    task = Message(RecordDict(), dst_node_id=node, message_type="train")
    message = Message(encode_report(report, NAMES, {"config": "0"}), reply_to=task)
    message.metadata.__dict__["_src_node_id"] = node
    return message


@pytest.fixture
def open_tasks():
    tasks = Outstanding(SITES, 2, 0.5)
    tasks.give("south", _given(state(1, 0, 0)))
    tasks.give("north", _given(state(3, 1, 1)))
    return tasks


def test_in_time_and_late_are_told_apart_by_the_task_not_by_the_arrival(open_tasks):
    assert open_tasks.busy == {"north": 3, "south": 1}
    accepted = open_tasks.accept([answer(12, 1), answer(11, 3)], 3, hold=True)
    assert [r.site for r in accepted.reports] == ["north"]
    assert [(r.site, r.server_round) for r in accepted.late] == [("south", 1)]
    assert not accepted.rejected
    assert open_tasks.busy == {}
    (late,) = open_tasks.due(3)
    assert late.factor == 0.25
    np.testing.assert_array_equal(late.sent.theta, [0, 0])
    np.testing.assert_array_equal(late.rebased(state(3, 1, 1))[0], [1.25, 1.5])


def test_what_is_due_grows_older_until_it_has_entered(open_tasks):
    open_tasks.accept([answer(12, 1)], 2, hold=True)
    assert [late.factor for late in open_tasks.due(2)] == [0.5]
    assert [late.factor for late in open_tasks.due(3)] == [0.25]
    open_tasks.entered()
    assert open_tasks.due(4) == ()


def test_dropped_replies_are_read_and_not_held(open_tasks):
    accepted = open_tasks.accept([answer(12, 1)], 3, hold=False)
    assert [r.site for r in accepted.late] == ["south"]
    assert open_tasks.due(3) == ()


def test_the_current_round_on_a_late_reply_is_a_lie(open_tasks):
    accepted = open_tasks.accept([answer(12, 3)], 3, hold=True)
    assert accepted.rejected == {"south": "late reply to round 1: RecordError: round: expected 1, got 3"}
    assert open_tasks.busy == {"north": 3}  # answered, if badly: free again
    assert open_tasks.due(3) == ()


def test_two_different_answers_are_none_and_unasked_is_not_read(open_tasks):
    twice = [answer(12, 1), answer(12, 1, (5.0, 5.0)), answer(11, 3), answer(11, 3), answer(11, 3, (5.0, 5.0))]
    accepted = open_tasks.accept([*twice, answer(13, 3)], 3, hold=True)
    assert accepted.reports == accepted.late == ()
    assert accepted.rejected == {
        "south": "late reply to round 1: answered twice",
        "north": "answered twice",
        "west": "answered a task that is not open",
    }
    assert open_tasks.due(3) == ()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_bad_reply_or_a_copy_takes_no_good_one_with_it(open_tasks, first):
    replies = [answer(11, 3), answer(11, 2), answer(11, 3)]
    accepted = open_tasks.accept(replies[first:] + replies[:first], 3, hold=True)
    assert [r.site for r in accepted.reports] == ["north"]
    assert accepted.rejected == {"north": "beside one that counts: RecordError: round: expected 3, got 2"}
    again = open_tasks.accept([answer(11, 3)], 4, hold=True)
    assert again.reports == ()
    assert again.rejected == {"north": "answered a task that is not open"}


def test_strangers_and_errors_leave_the_task_open(open_tasks):
    error = Message(Error(2, "boom"), reply_to=Message(RecordDict(), dst_node_id=12, message_type="train"))
    error.metadata.__dict__["_src_node_id"] = 12
    accepted = open_tasks.accept([answer(99, 1), error], 3, hold=True)
    assert not accepted.rejected
    assert open_tasks.busy == {"north": 3, "south": 1}
    open_tasks.close("south")
    open_tasks.close("south")
    assert open_tasks.busy == {"north": 3}


def test_a_lost_task_is_kept_as_it_was_and_sent_again_three_times_at_most(open_tasks):
    for sending in range(2, 2 + RESENDS):
        assert open_tasks.lose("south", now=5.0) is None
        assert open_tasks.busy == {"north": 3}
        assert [(site, task.server_round) for site, task in open_tasks.lost.items()] == [("south", 1)]
        again = open_tasks.again("south")
        assert (again.sendings, again.lost) == (sending, False)
        np.testing.assert_array_equal(again.state.theta, [0, 0])
        assert open_tasks.busy == {"north": 3, "south": 1}
        assert not open_tasks.lost
    assert open_tasks.lose("south", now=5.0) == "given up after 4 sendings"
    assert open_tasks.busy == {"north": 3}
    assert not open_tasks.lost


def test_a_lost_task_is_given_up_when_the_patience_of_its_first_sending_is_over(open_tasks):
    open_tasks.give("south", _given(state(1, 0, 0), until=100.0))
    assert open_tasks.lose("south", now=99.0) is None
    assert open_tasks.again("south").until == 100.0
    assert open_tasks.lose("south", now=100.0) == "given up: server.patience is over"
    assert open_tasks.busy == {"north": 3}


def test_the_answer_to_a_task_sent_again_is_read_against_its_own_round(open_tasks):
    open_tasks.lose("south", now=0.0)
    open_tasks.again("south")
    accepted = open_tasks.accept([answer(12, 1)], 4, hold=True)
    assert [(r.site, r.server_round) for r in accepted.late] == [("south", 1)]
    assert [late.factor for late in open_tasks.due(4)] == [0.125]
