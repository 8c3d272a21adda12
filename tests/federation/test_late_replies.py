"""A site that needs longer than a round: its work is not lost, and it gets no second task meanwhile."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from client_app.app import app as client_app
from llm_qfl.federation.config import RunConfig, default_run_config
from llm_qfl.federation.records import state_record
from server_app.grid import BoundedGrid
from server_app.session import initial_state, make_strategy, open_session
from simulation.grid import Delayed, InMemoryGrid
from simulation.run import run_federation

SMALL = {
    "server.rounds": 3,
    "training.steps": 2,
    "quantum.layers": 1,
    "server.deadline": 10.0,
    "language.model": "none",
}
NEVER = 10**9


class Clock:
    now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def delayed(**by_round):
    """A fault: the reply to the task of round r (`r1=...`) comes later; each value is what `Delayed` takes."""

    def fault(task, reply):
        when = by_round.get(f"r{task.metadata.group_id}")
        return reply if when is None or task.metadata.message_type != "train" else Delayed(reply, **when)

    return fault


def play(faults, sites=3, on_round=lambda number, inner: None, grid=InMemoryGrid, **keys):
    """The whole round loop on a clock of its own: nobody really waits."""
    flat = {**default_run_config(), **SMALL, **{k.replace("__", "."): v for k, v in keys.items()}}
    config, clock = RunConfig.from_run_config(flat), Clock()
    nodes = {n + 1: {"partition-id": n, "num-partitions": sites} for n in range(sites)}
    inner = grid(client_app, nodes, flat, faults)
    bounded = BoundedGrid(inner, clock=clock, sleep=clock.sleep)
    opened = open_session(bounded, config)
    rounds, states = [], [initial_state(opened)]

    def close(summary, state):
        rounds.append(summary)
        states.append(state)
        on_round(summary.server_round, inner)

    strategy = make_strategy(opened, close)
    arrays = state_record(states[0])
    strategy.start(bounded, arrays, num_rounds=config.server.rounds, timeout=config.server.deadline)
    asked = [(int(m.group_id), f"site-{m.dst_node_id - 1:04d}") for m in inner.pushed if m.message_type == "train"]
    return SimpleNamespace(rounds=rounds, states=states, strategy=strategy, asked=asked, clock=clock, inner=inner)


def names(reports):
    return [report.site for report in reports]


def by_hand(states, summary, late_of, factor):
    """The average in plain numpy: in time p_i theta_i, late p_i (now + factor (theta - sent then))."""
    now = states[summary.server_round - 1].theta
    then = states[late_of.server_round - 1].theta
    points = [r.theta for r in summary.reports] + [now + factor * (late_of.theta - then)]
    return np.average(points, axis=0, weights=[r.num_examples for r in summary.reports] + [late_of.num_examples])


@pytest.mark.parametrize(("lag", "staleness"), [(1, 0.5), (2, 0.5), (2, 0.9)])
def test_a_late_reply_enters_a_later_average_as_a_damped_update(lag, staleness):
    run = play({2: delayed(r1={"exchanges": lag})}, server__staleness=staleness)
    assert names(run.rounds[0].reports) == ["site-0000", "site-0002"]
    assert "no reply within 10 s" in run.rounds[0].rejected["site-0001"]
    closing = run.rounds[lag]
    (report,) = closing.late
    assert (report.site, report.server_round) == ("site-0001", 1)
    assert closing.entered == (("site-0001", 1, staleness**lag),)
    expected = by_hand(run.states, closing, report, staleness**lag)
    np.testing.assert_allclose(run.states[lag + 1].theta, expected, rtol=0, atol=1e-14)
    for name, arrays in run.states[0].baselines.items():
        for key, first in arrays.items():
            now = run.states[lag].baselines[name][key]
            late = now + staleness**lag * (report.baselines[name][key] - first)
            points = [r.baselines[name][key] for r in closing.reports] + [late]
            weights = [r.num_examples for r in closing.reports] + [report.num_examples]
            new = run.states[lag + 1].baselines[name][key]
            np.testing.assert_allclose(new, np.average(points, axis=0, weights=weights), rtol=0, atol=1e-14)


def test_a_busy_site_is_listed_and_given_no_second_task_until_it_has_answered():
    run = play({2: delayed(r1={"exchanges": 2})}, server__rounds=4)
    assert [line.busy for line in run.rounds] == [(), ("site-0001",), ("site-0001",), ()]
    assert [number for number, site in run.asked if site == "site-0001"] == [1, 4]
    assert [number for number, site in run.asked if site == "site-0000"] == [1, 2, 3, 4]
    assert [line.plan.sites for line in run.rounds[1:3]] == [("site-0000", "site-0002")] * 2
    assert not run.rounds[1].rejected
    assert names(run.rounds[3].reports) == ["site-0000", "site-0001", "site-0002"]  # back again
    assert len(run.rounds) == 4  # nobody to wait for at the end
    assert not run.strategy.evaluation_failures


def test_a_late_reply_is_no_part_of_the_rounds_validation():
    run = play({2: delayed(r1={"exchanges": 1})})
    second = run.rounds[1]
    assert second.validation.count == sum(r.received.count for r in second.reports)


def test_dropped_replies_do_not_enter_but_what_they_cost_is_counted():
    keys = {"server__rounds": 2}
    kept = play({2: delayed(r1={"exchanges": 1})}, **keys)
    dropped = play({2: delayed(r1={"exchanges": 1})}, server__late="dropped", **keys)
    second = dropped.rounds[1]
    assert names(second.late) == ["site-0001"]
    assert second.entered == ()
    assert second.aggregated
    expected = np.average([r.theta for r in second.reports], axis=0, weights=[r.num_examples for r in second.reports])
    np.testing.assert_allclose(dropped.states[2].theta, expected, rtol=0, atol=1e-14)
    for run in (kept, dropped):
        assert (
            sum(r.spent.evaluations for line in run.rounds for r in line.work) == 5 * second.late[0].spent.evaluations
        )
        assert run.rounds[1].bytes_up == sum(r.bytes_up for r in run.rounds[1].work)


def test_when_every_site_is_busy_the_round_waits_for_them():
    faults = {n: delayed(r1={"pulls": 60}) for n in (1, 2, 3)}
    run = play(faults, server__rounds=2, server__quorum=1.0)
    first, second = run.rounds
    assert not first.aggregated
    assert second.plan.sites == ()
    assert second.busy == ("site-0000", "site-0001", "site-0002")
    assert names(second.late) == list(second.busy)
    assert second.aggregated
    assert second.reports == ()
    weights = [r.num_examples for r in second.late]
    moved = np.average([0.5 * (r.theta - run.states[0].theta) for r in second.late], axis=0, weights=weights)
    np.testing.assert_allclose(run.states[2].theta, run.states[1].theta + moved, rtol=0, atol=1e-14)
    assert second.validation is None
    assert 10.0 < run.clock.now < 20.0  # up to the deadline, not longer than it takes


def test_late_replies_count_for_the_quorum():
    def silent_in_round_2(task, reply):
        late = task.metadata.group_id == "2" and task.metadata.message_type == "train"
        return Delayed(reply, exchanges=1) if late else reply

    faults = {2: delayed(r1={"exchanges": 1}), 3: silent_in_round_2}
    first = play(faults, server__quorum=0.6)  # round 2: 1 in time + 1 late of 2 + 1: 2 of 3 are needed
    assert first.rounds[1].aggregated
    assert first.rounds[1].entered == (("site-0001", 1, 0.5),)
    second = play(faults, server__quorum=0.67)  # 3 of 3 are needed, and round 1 had 2 of 3
    assert [line.aggregated for line in second.rounds[:2]] == [False, False]
    # Nothing paid for is lost: the next average takes it, older by a round; site-0002's comes in the same round.
    assert second.rounds[2].entered == (("site-0001", 1, 0.25), ("site-0002", 2, 0.5))
    assert second.rounds[2].aggregated
    assert names(second.rounds[2].late) == ["site-0002"]


def test_a_site_whose_node_dies_is_not_busy_any_more():
    def dies(number, grid):
        if number == 2:
            grid.leave(2)

    run = play({2: delayed(r1={"exchanges": NEVER})}, on_round=dies, server__rounds=4)
    assert [line.busy for line in run.rounds] == [(), ("site-0001",), (), ()]
    assert run.rounds[2].rejected["site-0001"] == "task of round 1: not connected"
    assert run.rounds[3].rejected == {"site-0001": "not connected"}
    assert len(run.rounds) == 4  # no closing round: nobody is busy
    assert run.strategy.evaluation_failures == {"site-0001": "not connected"}


def test_a_site_whose_patience_is_over_gets_a_new_task():
    run = play({2: delayed(r1={"exchanges": NEVER})}, server__patience=5.0, server__deadline=5.0)
    assert [number for number, site in run.asked if site == "site-0001"] == [1, 2, 3]
    assert all(line.busy == () for line in run.rounds)


def test_the_last_wait_takes_what_comes_and_leaves_out_what_does_not():
    faults = {2: delayed(r3={"pulls": 60}), 3: delayed(r3={"pulls": NEVER})}
    run = play(faults, data__test="federated")
    closing = run.rounds[3]
    assert closing.server_round == 4
    assert closing.plan.sites == ()
    assert closing.busy == ("site-0001", "site-0002")
    assert closing.entered == (("site-0001", 3, 0.5),)
    assert run.strategy.evaluation_failures == {"site-0002": "still busy with the task of round 3"}
    assert [e.site for e in run.strategy.evaluations] == ["site-0000", "site-0001"]
    assert [number for number, _ in run.asked if number > 3] == []
    assert run.clock.now < 21.0  # two deadlines: of round 3 and of the wait


def test_the_final_model_is_the_one_after_the_last_wait():
    scored = []

    def watch(task, reply):
        if task.metadata.message_type == "evaluate":
            scored.append(task.content["arrays"]["qnn/weights"].numpy())
        return reply

    run = play({1: watch, 2: delayed(r3={"pulls": 60})})
    np.testing.assert_array_equal(scored[0], run.states[4].theta)
    assert np.abs(run.states[4].theta - run.states[3].theta).max() > 0


@dataclass
class Changed:
    """A late reply that is not what it should be."""

    key: str
    value: object

    def __call__(self, task, reply):
        if task.metadata.message_type != "train" or task.metadata.group_id != "1":
            return reply
        reply.content["meta"][self.key] = self.value
        return Delayed(reply, exchanges=1)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("round", 2, "round: expected 1, got 2"), ("site", "site-0000", "the reply is from 'site-0000'")],
)
def test_a_late_reply_is_checked_against_its_own_round(key, value, reason):
    run = play({2: Changed(key, value)})
    second = run.rounds[1]
    assert second.late == ()
    assert second.rejected["site-0001"].startswith("late reply to round 1: RecordError")
    assert reason in second.rejected["site-0001"]
    assert [number for number, site in run.asked if site == "site-0001"] == [1, 3]


class Reversed(InMemoryGrid):
    """Everything arrives in another order."""

    def pull_messages(self, message_ids):
        return list(super().pull_messages(message_ids))[::-1]


class Twice(InMemoryGrid):
    """Every late reply arrives again, in the same pull and in all that follow."""

    def __init__(self, *args, **keys):
        super().__init__(*args, **keys)
        self.old = []

    def pull_messages(self, message_ids):
        there = list(super().pull_messages(message_ids))
        current = self.pushed[-1].group_id
        self.old += [m for m in there if m.metadata.message_type == "train" and m.metadata.group_id != current]
        return there + self.old


def test_the_order_of_arrival_changes_no_bit():
    faults = {2: delayed(r1={"exchanges": 1}), 3: delayed(r1={"exchanges": 1}, r3={"pulls": 60})}
    digests = [
        [line.theta_digest for line in play(faults, sites=4, grid=kind).rounds] for kind in (InMemoryGrid, Reversed)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4


def test_an_answer_that_comes_twice_counts_once():
    faults = {2: delayed(r1={"exchanges": 1})}
    once, twice = play(faults), play(faults, grid=Twice)
    assert twice.inner.old
    assert [line.theta_digest for line in twice.rounds] == [line.theta_digest for line in once.rounds]
    assert [names(line.late) for line in twice.rounds] == [[], ["site-0001"], []]


def test_where_nothing_is_late_nothing_is_different():
    run = play({})
    plain = run_federation({**SMALL}, sites=3)
    assert [line.theta_digest for line in run.rounds] == [line.theta_digest for line in plain.finished.rounds]
    assert all(line.busy == line.late == line.entered == () for line in run.rounds)


def test_the_run_folder_tells_it_all(tmp_path):
    faults = {2: delayed(r1={"exchanges": 1})}
    run = run_federation({**SMALL, "server.rounds": 2, "server.deadline": 0.2}, sites=3, faults=faults, output=tmp_path)
    first, second = (json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines())
    assert first["late"] == first["busy"] == first["entered"] == []
    assert second["busy"] == ["site-0001"]
    (late,) = second["late"]
    assert (late["site"], late["of_round"], late["lag"]) == ("site-0001", 1, 1)
    assert second["entered"] == [{"site": "site-0001", "of_round": 1, "factor": 0.5}]
    assert second["evaluations"] == sum(c["evaluations"] for c in [*second["clients"], late])
    assert run.summary["evaluations"] == first["evaluations"] + second["evaluations"]
