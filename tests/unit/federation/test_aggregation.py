import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_qfl.federation.aggregation import Late, aggregate, weighted_mean
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import ClientReport, GlobalState, Scores, Spent

NONE = Scores(0.0, np.zeros(2, np.intp), np.zeros(2, np.intp))


def reply(site, theta, rows):
    theta = np.asarray(theta, float)
    arrays = {"logistic": {"w": theta * 2}}
    return ClientReport(site, 1, theta, rows, NONE, NONE, 0.0, 0.0, Spent(), 0.0, arrays, {"logistic": NONE})


STATE = GlobalState(1, np.zeros(3), ("a", "b", "c"), {"logistic": {"w": np.zeros(3)}})


@given(st.permutations(range(5)), st.integers(0, 2**31))
def test_the_order_of_arrival_changes_no_bit(order, seed):
    rng = np.random.default_rng(seed)
    replies = [reply(f"site-{n}", rng.normal(size=3), int(rng.integers(1, 99))) for n in range(5)]
    first = aggregate(STATE, replies)
    second = aggregate(STATE, [replies[n] for n in order])
    assert first.theta.tobytes() == second.theta.tobytes()
    assert first.baselines["logistic"]["w"].tobytes() == second.baselines["logistic"]["w"].tobytes()


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 1000)), min_size=1, max_size=8))
def test_the_mean_is_numpys_average(pairs):
    replies = [reply(f"s{n}", [value] * 3, rows) for n, (value, rows) in enumerate(pairs)]
    expected = np.average([p[0] for p in pairs], weights=[p[1] for p in pairs])
    np.testing.assert_allclose(aggregate(STATE, replies).theta, expected, atol=1e-12)
    plain = np.mean([p[0] for p in pairs])
    np.testing.assert_allclose(aggregate(STATE, replies, weighting="uniform").theta, plain, atol=1e-12)


def test_identical_replies_average_to_themselves():
    theta = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(weighted_mean([theta] * 7, [3.0] * 7), theta, rtol=1e-15)


def test_nothing_to_average_is_an_error():
    with pytest.raises(FederationError, match="at least one"):
        aggregate(STATE, [])
    with pytest.raises(FederationError, match="examples or uniform"):
        aggregate(STATE, [reply("a", [1, 2, 3], 1)], weighting="median")


def late(site, theta, rows, sent, factor):
    sent = np.asarray(sent, float)
    before = GlobalState(0, sent, ("a", "b", "c"), {"logistic": {"w": 2 * sent}})
    return Late(reply(site, theta, rows), before, factor)


NOW = GlobalState(3, np.array([1.0, 2.0, 3.0]), ("a", "b", "c"), {"logistic": {"w": np.array([2.0, 4.0, 6.0])}})


def test_a_late_report_enters_as_an_update_rebased_on_the_current_state():
    # by hand: p = 30/40 and 10/40; the late update (1, 0, -4) damped to (0.5, 0, -2) on top of (1, 2, 3)
    new = aggregate(NOW, [reply("a", [2, 2, 2], 30)], late=[late("b", [6, 5, 0], 10, [5, 5, 4], 0.5)])
    np.testing.assert_array_equal(new.theta, [0.75 * 2 + 0.25 * 1.5, 2.0, 0.75 * 2 + 0.25 * 1.0])
    np.testing.assert_array_equal(new.baselines["logistic"]["w"], 2 * new.theta)
    assert new.server_round == 3


def test_alone_a_late_report_moves_the_model_by_its_damped_update():
    new = aggregate(NOW, [], late=[late("b", [1, 1, 1], 7, [0, 0, 0], 0.25)])
    np.testing.assert_array_equal(new.theta, NOW.theta + 0.25)


def test_uniform_weights_count_late_reports_as_one_each():
    reports = [reply("a", [3, 3, 3], 1), reply("c", [0, 0, 0], 999)]
    new = aggregate(NOW, reports, weighting="uniform", late=[late("b", [1, 1, 1], 7, [0, 0, 0], 0.5)])
    np.testing.assert_allclose(new.theta, (np.array([3.0, 3, 3]) + NOW.theta + 0.5) / 3, rtol=1e-15)


def test_a_late_report_of_the_current_state_with_factor_one_is_a_report_in_time():
    mine = late("b", [0.1, 0.7, 0.3], 7, NOW.theta, 1.0)
    in_time = aggregate(NOW, [reply("a", [2, 2, 2], 30), mine.report])
    together = aggregate(NOW, [reply("a", [2, 2, 2], 30)], late=[mine])
    np.testing.assert_allclose(together.theta, in_time.theta, rtol=1e-15)


@given(st.permutations(range(4)), st.permutations(range(3)))
def test_the_order_in_which_late_reports_came_changes_no_bit(order, order_late):
    rng = np.random.default_rng(0)
    reports = [reply(f"s{n}", rng.normal(size=3), n + 1) for n in range(4)]
    lates = [late(f"l{n}", rng.normal(size=3), n + 2, rng.normal(size=3), 0.5**n) for n in range(3)]
    first = aggregate(NOW, reports, late=lates)
    second = aggregate(NOW, [reports[n] for n in order], late=[lates[n] for n in order_late])
    assert first.theta.tobytes() == second.theta.tobytes()
