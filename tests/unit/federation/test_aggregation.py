import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_qfl.federation.aggregation import aggregate, weighted_mean
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import ClientReport, GlobalState, Scores, Spent

NONE = Scores(0.0, np.zeros(2, np.intp), np.zeros(2, np.intp))


def reply(site, theta, rows):
    arrays = {"logistic": {"w": np.asarray(theta) * 2}}
    theta = np.asarray(theta, float)
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
