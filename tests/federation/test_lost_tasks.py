"""A client that dies over a task: jobs that were paid for it are found again by the same task, and by no other."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from client_app import data
from client_app.app import app as client_app
from client_app.guard import HANDLER_FAILED, UNFINISHED, guarded
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.records import decode_task, state_record
from llm_qfl.quantum.ibm.errors import BudgetError, JobFailedError, JobWaitError, ServiceUnavailableError
from server_app.grid import BoundedGrid
from server_app.session import initial_state, make_strategy, open_session
from simulation.grid import Delayed, InMemoryGrid

SMALL = {
    "server.rounds": 4,
    "training.steps": 2,
    "quantum.layers": 1,
    "server.deadline": 10.0,
    "server.wait": 30.0,
    "language.model": "none",
}
NEVER = 10**9
CRASHED = 8


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Watched(InMemoryGrid):
    """Keeps what was pushed; nodes may come back."""

    def __init__(self, *args):
        super().__init__(*args)
        self.tasks = []

    def push_messages(self, messages):
        messages = list(messages)
        self.tasks += [message for message in messages if message.metadata.message_type == "train"]
        return super().push_messages(messages)

    def back(self, node, new=None, **changes):
        """The node is there again, or a new one with its node config."""
        if new is None:
            self._gone.discard(node)
        else:
            before = self._contexts[node]
            config = {**before.node_config, **changes}
            self._contexts[new] = Context(1, new, config, RecordDict(), before.run_config)


def dies(*when, code=CRASHED, kind="train"):
    """A fault: these tasks (counted from 1) end in an error of Flower's."""
    count = 0

    def fault(task, reply):
        nonlocal count
        if task.metadata.message_type != kind:
            return reply
        count += 1
        return Message(Error(code, "ClientApp stopped responding."), reply_to=task) if count in when else reply

    return fault


@pytest.fixture
def play(monkeypatch):
    """The round loop on a clock of its own. Site 2 says that it trains on a QPU (its circuits run exactly here)."""

    def played(fault, paying=(2,), on_round=lambda number, inner: None, kind=Watched, **keys):
        flat = {**default_run_config(), **SMALL, **{k.replace("__", "."): v for k, v in keys.items()}}
        census = data.census

        def says(config, settings, site):
            answer = census(config, settings, site)
            backend = "ibm:loop_manila" if settings.partition_id + 1 in paying else "exact"
            return type(answer)(**(vars(answer) | {"backend": backend}))

        monkeypatch.setattr(data, "census", says)
        clock = Clock()
        nodes = {n + 1: {"partition-id": n, "num-partitions": 3} for n in range(3)}
        inner = kind(client_app, nodes, flat, {2: fault})
        grid = BoundedGrid(inner, clock=clock, sleep=clock.sleep)
        opened = open_session(grid, RunConfig.from_run_config(flat))
        rounds = []

        def close(summary, state):
            rounds.append(summary)
            on_round(summary.server_round, inner)

        strategy = make_strategy(opened, close)
        start, deadline = state_record(initial_state(opened)), SMALL["server.deadline"]
        strategy.start(grid, start, num_rounds=flat["server.rounds"], timeout=deadline)
        tasks = [task for task in inner.tasks if task.metadata.dst_node_id in (2, 22)]
        asked = [int(task.metadata.group_id) for task in tasks]
        return SimpleNamespace(rounds=rounds, strategy=strategy, asked=asked, tasks=tasks, clock=clock)

    return played


def reasons(run):
    return [line.rejected.get("site-0001") for line in run.rounds]


LOST = "ClientApp stopped responding. (code 8); task of round 1 is sent again"


def test_the_same_task_is_sent_again_and_its_answer_is_a_late_reply(play):
    run = play(dies(1))
    assert run.asked == [1, 1, 3, 4]
    assert reasons(run) == [LOST, None, None, None]
    first, second = (decode_task(task.content) for task in run.tasks[:2])
    np.testing.assert_array_equal(first.state.theta, second.state.theta)
    for name, arrays in first.state.baselines.items():
        for key, values in arrays.items():
            np.testing.assert_array_equal(values, second.state.baselines[name][key])
    same = ("site", "setup", "setup_digest", "fingerprint", "run")
    assert [getattr(first, key) for key in same] == [getattr(second, key) for key in same]
    assert vars(first.plan) == vars(second.plan)
    assert second.state.server_round == 1
    assert second.setup is not None  # who died may not have kept it
    again = run.rounds[1]
    assert again.busy == ("site-0001",)
    assert "site-0001" not in again.plan.sites
    assert [(report.site, report.server_round) for report in again.late] == [("site-0001", 1)]
    assert again.entered == (("site-0001", 1, 0.5),)


def test_a_site_that_pays_for_nothing_gets_a_fresh_task(play):
    run = play(dies(1), paying=())
    assert run.asked == [1, 2, 3, 4]
    assert reasons(run)[0] == "ClientApp stopped responding. (code 8)"


def test_where_late_replies_are_dropped_nothing_is_sent_again(play):
    run = play(dies(1), server__late="dropped")
    assert run.asked == [1, 2, 3, 4]


def test_an_error_of_a_living_client_is_an_answer(play):
    assert play(dies(1, code=HANDLER_FAILED)).asked == [1, 2, 3, 4]


def test_a_client_whose_paid_jobs_wait_in_its_ledger_is_sent_the_same_task(play):
    run = play(dies(1, code=UNFINISHED))
    assert run.asked == [1, 1, 3, 4]
    assert run.rounds[1].entered == (("site-0001", 1, 0.5),)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ServiceUnavailableError("no answer"), UNFINISHED),
        (JobWaitError("still queued"), UNFINISHED),
        (JobFailedError("broken", "job-1"), HANDLER_FAILED),
        (BudgetError("too dear"), HANDLER_FAILED),
        (ValueError("a row of the site's"), HANDLER_FAILED),
    ],
)
def test_a_client_says_whether_the_same_task_would_go_on(error, code):
    def handler(message, context):
        raise error

    task = Message(RecordDict(), dst_node_id=1, message_type="train")
    answer = guarded(handler)(task, Context(1, 1, {}, RecordDict(), {}))
    assert (answer.error.code, answer.error.reason) == (code, type(error).__name__)


def test_a_task_is_given_up_after_three_more_sendings(play):
    run = play(dies(*range(1, 5)), server__rounds=6)
    assert run.asked == [1, 1, 1, 1, 5, 6]
    again = f"task of round 1, sent again: {LOST}"
    assert reasons(run)[:4] == [LOST, again, again, again.replace("is sent again", "given up after 4 sendings")]
    assert reasons(run)[4:] == [None, None]


def test_a_living_client_s_error_to_a_task_sent_again_closes_it(play):
    first, second = dies(1), dies(2, code=HANDLER_FAILED)

    def fault(task, reply):
        return first(task, second(task, reply))

    run = play(fault)
    assert run.asked == [1, 1, 3, 4]
    assert reasons(run)[1] == "task of round 1, sent again: ClientApp stopped responding. (code 1001)"


def test_patience_counts_from_the_first_sending(play):
    first = dies(1)

    def fault(task, reply):
        return first(task, Delayed(reply, pulls=NEVER) if task.metadata.group_id == "1" else reply)

    run = play(fault, server__patience=15.0)
    assert run.asked == [1, 1]  # round 2 waits 10 s for it; then it is busy to the end
    assert run.tasks[1].metadata.ttl <= 15.0
    assert reasons(run)[1] == "task of round 1, sent again: no reply within 10 s (code 1000)"
    assert reasons(run)[-1] == "task of round 1: no reply within 15 s (code 1000)"
    assert 15.0 <= run.clock.now < 15.5


def test_a_task_lost_in_the_last_round_is_sent_again_in_a_closing_round(play):
    run = play(dies(4, 5))
    assert run.asked == [1, 2, 3, 4, 4, 4]
    assert [line.server_round for line in run.rounds] == [1, 2, 3, 4, 5, 6]
    assert run.rounds[4].plan.sites == run.rounds[5].plan.sites == ()
    assert run.rounds[5].entered == (("site-0001", 4, 0.25),)
    assert not run.strategy.evaluation_failures


def test_a_node_that_went_and_came_back_gets_its_task_again(play):
    def on_round(number, inner):
        if number == 1:
            inner.leave(2)
        elif number == 2:
            inner.back(2)

    run = play(lambda task, reply: Delayed(reply, exchanges=NEVER) if task.metadata.group_id == "1" else reply,
               on_round=on_round, server__patience=3600.0)  # fmt: skip
    assert run.asked[:2] == [1, 1]
    assert reasons(run)[1] == "task of round 1: not connected; task of round 1 is sent again"


@pytest.mark.parametrize("busy", [False, True])
def test_a_node_that_comes_back_under_another_id_takes_its_site_s_place(play, busy):
    def on_round(number, inner):
        if number == 1:
            inner.leave(2)
            inner.back(2, new=22)

    first = dies(1, code=5)

    def fault(task, reply):
        if busy:
            return Delayed(reply, exchanges=NEVER) if task.metadata.group_id == "1" else reply
        return first(task, reply)

    run = play(fault, on_round=on_round, server__patience=3600.0, data__test="federated")
    assert run.asked == [1, 1, 3, 4]
    assert [task.metadata.dst_node_id for task in run.tasks] == [2, 22, 22, 22]
    assert run.rounds[1].entered == (("site-0001", 1, 0.5),)
    assert [site for line in run.rounds[1:] for site in line.rejected] == []
    assert [evaluation.site for evaluation in run.strategy.evaluations] == ["site-0000", "site-0001", "site-0002"]
    plain = play(fault, on_round=on_round, paying=(), server__patience=3600.0)
    assert plain.asked == [1, 2, 3, 4]  # a fresh task


def test_a_site_that_comes_back_with_other_rows_is_another_site(play):
    def on_round(number, inner):
        if number == 1:
            inner.leave(2)
            inner.back(2, new=22, **{"site": "site-0001", "partition-id": 2})

    run = play(dies(1, code=5), on_round=on_round, server__patience=3600.0)
    assert run.asked == [1]
    assert reasons(run)[1:4] == ["not connected; task of round 1 waits to be sent again"] * 3
    assert reasons(run)[4] == "not connected; task of round 1 given up, the run ends"


def test_the_end_of_the_run_waits_for_a_node_that_comes_back_under_another_id(play):
    count = []

    class Clocked(Watched):
        def get_node_ids(self):
            nodes = list(super().get_node_ids())
            count.append(len(nodes))
            if count.count(2) == 8:  # while the closing round waits
                self.back(2, new=22)
            return nodes

    def on_round(number, inner):
        if number == 4:
            inner.leave(2)

    run = play(dies(4, code=5), on_round=on_round, kind=Clocked)
    assert run.asked == [1, 2, 3, 4, 4]
    assert run.rounds[4].entered == (("site-0001", 4, 0.5),)
    assert run.clock.now < 5.0


def test_the_end_of_the_run_waits_for_a_node_that_has_gone_and_no_longer_than_server_wait(play):
    def on_round(number, inner):
        if number == 3:
            inner.leave(2)

    run = play(lambda task, reply: Delayed(reply, exchanges=NEVER) if task.metadata.group_id == "3" else reply,
               on_round=on_round, server__patience=3600.0)  # fmt: skip
    assert run.asked == [1, 2, 3]
    assert reasons(run)[3:] == [
        "task of round 3: not connected; task of round 3 is sent again",
        "not connected; task of round 3 given up, the run ends",
    ]
    assert 40.0 <= run.clock.now < 41.0  # one deadline, one server.wait
    assert run.strategy.evaluation_failures == {"site-0001": "not connected"}


def test_scores_that_were_lost_with_the_client_are_asked_for_again(play):
    run = play(dies(1, 2, kind="evaluate"), data__test="federated")
    assert [evaluation.site for evaluation in run.strategy.evaluations] == ["site-0000", "site-0001", "site-0002"]
    assert not run.strategy.evaluation_failures
    none = play(dies(1, 2, kind="evaluate"), data__test="federated", paying=())
    assert [evaluation.site for evaluation in none.strategy.evaluations] == ["site-0000", "site-0002"]
    assert none.strategy.evaluation_failures == {"site-0001": "ClientApp stopped responding. (code 8)"}


def test_scores_are_asked_for_four_times_at_most(play):
    run = play(dies(*range(1, 10), kind="evaluate"), data__test="federated")
    assert run.strategy.evaluation_failures == {"site-0001": "ClientApp stopped responding. (code 8)"}


def slow(number, kind="train", pulls=300):
    """A fault: the answer to the task of this round takes some minutes."""

    def fault(task, reply):
        meta = task.metadata
        return Delayed(reply, pulls=pulls) if (meta.message_type, meta.group_id) == (kind, str(number)) else reply

    return fault


def test_the_last_rounds_paid_work_is_waited_for_as_long_as_its_task_lives(play):
    run = play(slow(4), server__patience=3600.0)
    assert run.clock.now > 3 * SMALL["server.deadline"]
    assert run.rounds[-1].entered == (("site-0001", 4, 0.5 ** (run.rounds[-1].server_round - 4)),)
    assert run.strategy.evaluation_failures == {}


def test_nobody_waits_longer_than_the_deadline_for_work_that_cost_nothing(play):
    run = play(slow(4, pulls=NEVER), paying=(), server__patience=3600.0)
    assert run.clock.now < 3 * SMALL["server.deadline"]
    assert run.strategy.evaluation_failures == {"site-0001": "still busy with the task of round 4"}


def test_a_task_that_is_never_answered_ends_with_its_patience(play):
    run = play(slow(4, pulls=NEVER), server__patience=300.0)
    assert 300 <= run.clock.now < 400
    assert not run.rounds[-1].entered


def test_scores_that_may_be_paid_for_are_waited_for(play):
    run = play(slow(4, kind="evaluate"), server__patience=3600.0, data__test="federated")
    assert run.clock.now > SMALL["server.deadline"]
    assert [one.site for one in run.strategy.evaluations] == ["site-0000", "site-0001", "site-0002"]
    free = play(slow(4, kind="evaluate", pulls=NEVER), paying=(), server__patience=3600.0, data__test="federated")
    assert free.clock.now < 2 * SMALL["server.deadline"]
    assert "site-0001" in free.strategy.evaluation_failures
