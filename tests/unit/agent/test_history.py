import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.history import History, RoundRecord, Teachers, clipped, record_of, slowness
from llm_qfl.federation.types import ClientReport, LanguageAnswer, LanguageRound, RoundPlan, RoundSummary, Scores, Spent


def report(site, loss, examples=90, rows=10, evaluations=11, server_round=1):
    scores = Scores(loss * rows, np.array([rows, 0]), np.array([rows, 0]))
    spent = Spent(evaluations=evaluations, circuits=evaluations * examples)
    return ClientReport(site, server_round, np.zeros(2), examples, scores, scores, 1.0, 0.9, spent, 2.5, bytes_up=100)


def summary(*reports, late=(), validation=None):
    return RoundSummary(
        server_round=3,
        plan=RoundPlan(3, ("a", "b", "c"), 11, 0.1),
        reports=reports,
        rejected={},
        aggregated=True,
        validation=validation,
        baseline_validation={},
        bytes_up=300,
        bytes_down=400,
        seconds=6.0,
        theta_digest="",
        late=late,
    )


def test_a_round_in_numbers():
    validation = Scores(4.0, np.array([10, 0]), np.array([9, 0]))
    late = (report("c", 0.2, evaluations=5, server_round=2),)
    record = record_of(summary(report("b", 0.5), report("a", 0.3), late=late, validation=validation), {"a": 0.25}, 0.28)
    assert [(one.site, one.qnn_loss, one.language_loss) for one in record.sites] == [
        ("a", pytest.approx(0.3), 0.25),
        ("b", pytest.approx(0.5), None),
    ]
    assert record.server_loss == pytest.approx(0.4)
    assert record.language_loss == 0.28
    assert record.evaluations == 27  # the late answer was paid for
    assert record.circuits == 27 * 90
    assert record.bytes == 700
    assert record.asked == ("a", "b", "c")
    assert record.settled == ((1, "a"), (1, "b"), (2, "c"))  # a late answer settles the task of its own round


def test_a_simulators_seconds_decide_nothing():
    simulated, waited = report("a", 0.3), report("b", 0.5)
    waited = dataclasses.replace(waited, spent=dataclasses.replace(waited.spent, jobs=1))
    record = record_of(summary(simulated, waited), {})
    assert [one.seconds for one in record.sites] == [0, 2.5]
    slower = dataclasses.replace(simulated, seconds=99.0)
    assert record_of(summary(slower, waited), {}) == record
    third = dataclasses.replace(waited, site="c", seconds=7.5)
    history = History((record_of(summary(simulated, waited, third), {}),))
    assert slowness(history.known()) == {"a": 1, "b": 0.5, "c": 1.5}


def test_the_order_of_replies_changes_nothing():
    first = record_of(summary(report("b", 0.5), report("a", 0.3)), {"b": 0.4})
    assert record_of(summary(report("a", 0.3), report("b", 0.5)), {"b": 0.4}) == first


def test_b17_the_loss_is_the_returned_points_on_validation_rows():
    one = report("a", 0.3)
    assert (one.train_loss_first, one.train_loss_best) == (1.0, 0.9)
    assert record_of(summary(one), {}).sites[0].qnn_loss == pytest.approx(one.trained.loss)


def test_a_site_that_lies_is_clipped():
    assert clipped({"a": 0.4, "b": 0.5, "c": 1e9}, 0.1) == {"a": 0.4, "b": 0.5, "c": 1.5}
    assert clipped({"a": -3.0, "b": 0.5, "c": 0.5}, 0.1)["a"] == 0.0
    assert clipped({"a": math.nan, "b": math.inf, "c": 0.5}, 0.1) == {"c": 0.5}
    assert clipped({"a": math.nan}, 0.1) == {}
    record = record_of(summary(report("a", 0.8), report("b", 0.9), report("c", 1e9)), {})
    assert record.sites[2].qnn_loss == pytest.approx(2.7)


def test_a_site_whose_rows_are_hard_is_no_liar():
    one_class = {"a": 0.001, "b": 0.004, "c": 0.9}  # most sites hold one class and have nothing to lose
    assert clipped(one_class, math.log(2)) == one_class
    assert clipped({**one_class, "c": 1e9}, math.log(2))["c"] == pytest.approx(3 * math.log(2))
    record = record_of(summary(*(report(site, loss) for site, loss in one_class.items())), one_class, federated=True)
    assert [one.qnn_loss for one in record.sites] == pytest.approx([0.001, 0.004, 0.9])
    assert [one.language_loss for one in record.sites] == pytest.approx([0.001, 0.004, 0.9])
    assert [one.received_loss for one in record.sites] == pytest.approx([0.001, 0.004, 0.9])


def test_losses_that_are_no_numbers_are_none():
    nan = Scores(math.nan, np.array([10, 0]), np.array([9, 0]))
    record = record_of(summary(report("a", 0.3), validation=nan), {"a": math.nan}, math.inf)
    assert record.server_loss is None
    assert record.language_loss is None
    assert record.sites[0].language_loss is None


def test_distances_by_hand(site):
    record = RoundRecord(1, (site("a", 0.5, 0.4), site("b", 0.3)), server_loss=0.45)
    assert record.distances() == pytest.approx({"a": 0.05, "b": 0.15})
    assert record.distances("language") == pytest.approx({"a": 0.1})
    assert record.mean_distance == pytest.approx(0.1)
    assert RoundRecord(1, (site("a"),)).mean_distance is None


def test_the_last_answer_of_a_site_counts(site):
    history = History().then(RoundRecord(1, (site("a", 0.5), site("b", 0.6)), ("a", "b"), server_loss=0.5))
    history = history.then(RoundRecord(2, (site("a", 0.3),), ("a", "c"), server_loss=0.4, evaluations=7))
    known = history.known()
    assert (known["a"].record.qnn_loss, known["a"].server_round) == (0.3, 2)
    assert known["b"].distance == pytest.approx(0.1)
    assert history.last_asked() == {"a": 2, "b": 1, "c": 2}
    assert history.losses() == (0.5, 0.4)
    assert history.evaluations == 7


def language_part(loss, rows=10):
    scores = Scores(loss * rows, np.array([rows, 0]), np.array([rows, 0]))
    return LanguageAnswer({}, "", 90, 8, scores, scores, 1.0, 0.9)


def language_round(validation=None, full=None):
    def scores(loss):
        return None if loss is None else Scores(loss * 10, np.array([10, 0]), np.array([9, 0]))

    return LanguageRound((), {}, {}, (), True, scores(validation), scores(full), "", "", 0, 0)


def test_language_losses_stand_until_the_adapter_is_tuned_again():
    first = summary(
        dataclasses.replace(report("a", 0.5), language=language_part(0.3)),
        report("b", 0.5),
        late=(dataclasses.replace(report("c", 0.5), language=language_part(0.4)),),
    )
    teachers = Teachers().after(dataclasses.replace(first, language=language_round(0.35)))
    assert teachers.sites == pytest.approx({"a": 0.3, "c": 0.4})
    assert teachers.server == pytest.approx(0.35)
    same = teachers.after(summary(report("a", 0.4), report("b", 0.4)))
    assert same == teachers
    tuned = summary(dataclasses.replace(report("a", 0.4), language=language_part(0.2)))
    later = same.after(dataclasses.replace(tuned, language=language_round(0.3, 0.25)))
    assert later.sites == pytest.approx({"a": 0.2, "c": 0.4})
    assert later.server == pytest.approx(0.25)  # the full model's, where there is one
    record = record_of(summary(report("a", 0.5), report("b", 0.6)), later.sites, later.server)
    assert [one.language_loss for one in record.sites] == [pytest.approx(0.2), None]


def test_a_site_that_only_scored_the_adapter_has_that_loss():
    scores = Scores(2.5, np.array([10, 0]), np.array([9, 0]))
    empty = Scores(0.0, np.array([0, 0]), np.array([0, 0]))
    before = Teachers({"a": 0.3, "b": 0.4})
    scored = dataclasses.replace(language_round(), taught={"b": scores, "c": scores, "d": empty})
    closed = dataclasses.replace(summary(report("a", 0.5), report("b", 0.5)), language=scored)
    assert before.after(closed).sites == pytest.approx({"a": 0.3, "b": 0.25, "c": 0.25})


def test_the_adapters_bytes_are_no_decisions_price():
    travelled = dataclasses.replace(language_round(), bytes_up=50, bytes_down=60)
    closed = dataclasses.replace(summary(report("a", 0.5)), language=travelled)
    assert record_of(closed, {}).bytes == record_of(summary(report("a", 0.5)), {}).bytes - 110


def scored(server_round, federated=True, **losses):
    """A round that only these sites answered; each has ten validation rows, site c thirty."""
    reports = [report(site, loss, rows=30 if site == "c" else 10) for site, loss in losses.items()]
    rows = np.array([sum(one.received.count for one in reports), 0])
    pooled = Scores(sum(one.received.loss_sum for one in reports), rows, rows) if reports else None
    done = dataclasses.replace(summary(*reports, validation=pooled), server_round=server_round)
    return record_of(done, {}, federated=federated)


def test_federated_validation_compares_rounds_on_the_same_rows_whoever_took_part():
    easy_then_hard = History((scored(1, a=0.2, b=0.8), scored(2, a=0.2), scored(3, b=0.8), scored(4, a=0.1)))
    assert easy_then_hard.losses() == pytest.approx((0.5, 0.5, 0.5, 0.45))  # of those who answered: .5 .2 .8 .1


def test_a_site_that_comes_later_counts_from_the_first_round_with_its_first_loss():
    history = History((scored(1, a=0.6), scored(2, a=0.4), scored(3, c=0.8)))
    assert history.losses() == pytest.approx(((6 + 24) / 40, (4 + 24) / 40, (4 + 24) / 40))
    assert History(history.rounds[:2]).losses() == pytest.approx((0.6, 0.4))


def test_a_round_that_nobody_answered_scores_nothing():
    history = History((scored(1, a=0.6), scored(2), scored(3, a=0.5)))
    assert history.validation() == (pytest.approx(0.6), None, pytest.approx(0.5))
    assert history.losses() == pytest.approx((0.6, 0.5))


def test_the_servers_own_rows_are_the_same_each_round_already():
    history = History((scored(1, federated=False, a=0.2, b=0.8), scored(2, federated=False, a=0.2)))
    assert history.losses() == pytest.approx((0.5, 0.2))


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0.3, 0.6)), min_size=1, max_size=6))
def test_federated_validation_where_all_answer_is_the_pooled_loss_and_never_leaves_their_range(answers):
    whole = [{"a": 0.5, "b": 0.4, "c": 0.3} | one for one in answers]
    history = History(tuple(scored(n, **one) for n, one in enumerate(whole, 1)))
    assert history.losses() == pytest.approx([record.server_loss for record in history.rounds])
    parts = History(tuple(scored(n, **one) for n, one in enumerate(answers, 1)))
    told = [loss for one in answers for loss in one.values()]
    assert all(min(told) - 1e-9 <= loss <= max(told) + 1e-9 for loss in parts.losses())
