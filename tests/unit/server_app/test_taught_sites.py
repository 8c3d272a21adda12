"""Sites that have no adapter of this version score it once, so that L_i and soft labels are there in every round."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.types import ClientReport, LanguageAnswer, Scores, Spent
from server_app.language_rounds import AdapterRounds

SCORES = Scores(1.5, np.array([2, 1]), np.array([2, 0]))


class Session:
    """The language model's server without a model: adapters are numbers, an average is the next one."""

    def __init__(self, mode="llm-qfl-selected"):
        self.config = RunConfig.from_run_config({"agent.mode": mode, "language.every": 3, "server.rounds": 7})
        self.sites = self.trainers = ("a", "b", "c")
        self.rounds, self.makes_features, self.counts = (1, 4, 7), False, 2
        self.source, self.libraries, self.exported = "/m", {}, SimpleNamespace(sha256="s")
        self.scores, self.averaged = None, 0
        self.server = self

    def broadcast(self, *, emulator):
        arrays = {"adapter/0/q/A": np.zeros(1, np.float32), "emulator/0/q/A": np.zeros(1, np.float32)}
        return SimpleNamespace(arrays=arrays, adapter_digest=f"v{self.averaged}", emulator_digest="e", first_digest="f")

    def receive(self, arrays, digest):
        return dict(arrays)

    def change(self, arrays, digest):
        return np.concatenate(list(arrays.values()))

    def aggregate(self, answers):
        self.averaged += 1

    def after(self, server_round):
        return None, None


def report(site, **parts):
    return ClientReport(site, 1, np.zeros(1), 5, SCORES, SCORES, 1.0, 0.9, Spent(), 1.0, **parts)


def tuned(site, digest):
    arrays = {"adapter/0/q/A": np.ones(1, np.float32)}
    return report(site, language=LanguageAnswer(arrays, digest, 5, 1, SCORES, SCORES, 1.0, 0.5))


def play(rounds, server_round, replies):
    """One round: the tasks that the sites got, and what became of their replies."""
    rounds.open_round(server_round)
    tasks = {site: rounds.task(site, server_round) for site in replies}
    reports = [reply for _, reply in sorted(replies.items()) if reply is not None]
    return tasks, rounds.close_round(server_round, reports, ())


def kind(task):
    return None if task is None else "train" if task.train else "teach" if task.teach else "other"


def test_a_site_scores_a_version_once():
    rounds = AdapterRounds(Session())
    tasks, closed = play(rounds, 1, {site: tuned(site, "v0") for site in "ab"})
    assert {kind(task) for task in tasks.values()} == {"train"}
    assert closed.aggregated
    tasks, closed = play(rounds, 2, {"a": report("a"), "c": report("c", teacher=SCORES)})
    assert (kind(tasks["a"]), kind(tasks["c"])) == (None, "teach")  # a has tuned this version
    assert set(tasks["c"].arrays) == {"adapter/0/q/A", "emulator/0/q/A"}
    assert tasks["c"].adapter_digest == "v1"
    assert dict(closed.taught) == {"c": SCORES}
    assert (closed.sites, dict(closed.answers), closed.aggregated) == ((), {}, False)
    tasks, closed = play(rounds, 3, {"b": report("b"), "c": report("c")})
    assert set(map(kind, tasks.values())) == {None}
    assert closed is None
    play(rounds, 4, {"b": tuned("b", "v1"), "c": tuned("c", "v1")})  # the next version
    tasks, _ = play(rounds, 5, {"a": report("a", teacher=SCORES), "b": report("b")})
    assert (kind(tasks["a"]), kind(tasks["b"])) == ("teach", None)
    assert set(tasks["a"].arrays) == {"adapter/0/q/A"}  # it holds the emulator


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (report("c", language_problem="no memory"), "no memory"),
        (report("c"), "no language part"),
        (report("c", teacher=Scores(1.0, np.array([1]), np.array([1]))), "expected counts of 2 classes, got 1"),
    ],
)
def test_scores_that_do_not_come_are_a_reason_and_are_asked_for_again(reply, reason):
    rounds = AdapterRounds(Session())
    play(rounds, 1, {site: tuned(site, "v0") for site in "ab"})
    _, closed = play(rounds, 2, {"c": reply})
    assert reason in closed.rejected["c"]
    assert not closed.taught
    tasks, closed = play(rounds, 3, {"c": report("c", teacher=SCORES)})
    assert kind(tasks["c"]) == "teach"
    assert "emulator/0/q/A" in tasks["c"].arrays
    assert set(closed.taught) == {"c"}


def test_a_site_that_gives_no_reply_is_asked_again_and_a_late_one_counts():
    rounds = AdapterRounds(Session())
    play(rounds, 1, {site: tuned(site, "v0") for site in "ab"})
    assert play(rounds, 2, {"c": None})[1] is None
    rounds.open_round(3)
    closed = rounds.close_round(3, [], [report("c", teacher=SCORES)])
    assert set(closed.taught) == {"c"}
    assert closed.dropped == ()
    tasks, _ = play(rounds, 5, {"c": report("c")})
    assert kind(tasks["c"]) is None


def test_a_scored_adapter_that_was_not_asked_for_counts_nowhere():
    rounds = AdapterRounds(Session())
    play(rounds, 1, {site: tuned(site, "v0") for site in "ab"})
    assert play(rounds, 2, {"a": report("a", teacher=SCORES)})[1] is None


def test_mode_qfl_scores_nothing():
    rounds = AdapterRounds(Session("qfl"))
    play(rounds, 1, {site: tuned(site, "v0") for site in "ab"})
    assert kind(play(rounds, 2, {"c": report("c")})[0]["c"]) is None


def test_a_checkpoint_remembers_who_has_what():
    session = Session()
    rounds = AdapterRounds(session)
    play(rounds, 1, {site: tuned(site, "v0") for site in "ab"})
    again = AdapterRounds(session)
    again.remember(json.loads(json.dumps(rounds.memory())))
    tasks, _ = play(again, 2, {"a": report("a"), "c": report("c", teacher=SCORES)})
    assert (kind(tasks["a"]), kind(tasks["c"])) == (None, "teach")


def test_an_answer_below_quorum_is_that_sites_newest_version_all_the_same():
    rounds = AdapterRounds(Session())
    bad = replace(tuned("b", "v0"), language=None, language_problem="no memory")
    worse = replace(tuned("c", "v0"), language=None, language_problem="no memory")
    _, closed = play(rounds, 1, {"a": tuned("a", "v0"), "b": bad, "c": worse})
    assert not closed.aggregated
    tasks, _ = play(rounds, 2, {"a": report("a"), "b": report("b", teacher=SCORES)})
    assert (kind(tasks["a"]), kind(tasks["b"])) == (None, "teach")
