"""The aggregation of a round by rule: the mean to the bit, the others by model and by update."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_qfl.federation.aggregation import Late, aggregate
from llm_qfl.federation.combine import combine, flatten, unflatten
from llm_qfl.federation.config_robust import RobustKeys
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import ClientReport, GlobalState, Scores, Spent

NONE = Scores(0.0, np.zeros(2, np.intp), np.zeros(2, np.intp))
NAMES = ("a", "b", "c")


def reply(site, theta, rows=10, number=1):
    theta = np.asarray(theta, float)
    arrays = {"mlp": {"w": np.outer(theta, [1.0, 2.0]), "b": theta * 3}}
    return ClientReport(site, number, theta, rows, NONE, NONE, 0.0, 0.0, Spent(), 0.0, arrays, {"mlp": NONE})


def state_at(theta):
    return GlobalState(1, np.asarray(theta, float), NAMES, reply("", theta).baselines)


@given(st.permutations(range(5)), st.integers(0, 2**31), st.sampled_from(["examples", "uniform"]))
def test_the_mean_is_the_weighted_mean_to_the_bit(order, seed, weighting):
    rng = np.random.default_rng(seed)
    state = state_at(rng.normal(size=3))
    replies = [reply(f"site-{n}", rng.normal(size=3), int(rng.integers(1, 99))) for n in range(5)]
    behind = Late(reply("site-9", rng.normal(size=3), 7, 0), state_at(rng.normal(size=3)), 0.5)
    expected = aggregate(state, replies, weighting=weighting, late=[behind])
    found = combine(state, [replies[n] for n in order], RobustKeys(), weighting=weighting, late=[behind]).state
    assert found.theta.tobytes() == expected.theta.tobytes()
    for key in ("w", "b"):
        assert found.baselines["mlp"][key].tobytes() == expected.baselines["mlp"][key].tobytes()


def test_a_state_survives_being_a_vector():
    state = state_at([1.0, -2.0, 0.5])
    again = unflatten(flatten(state.theta, state.baselines), state)
    for key in ("w", "b"):
        np.testing.assert_array_equal(again.baselines["mlp"][key], state.baselines["mlp"][key])


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum"])
def test_one_liar_among_five_moves_nothing(rule):
    state = state_at([1.0, 1.0, 1.0])
    honest = [reply(f"site-{n}", [1.0 + n / 10, 2.0, 0.0]) for n in range(4)]
    found = combine(state, [*honest, reply("liar", [-100, -100, 100], 10**9)], RobustKeys(aggregation=rule))
    theta = found.state.theta
    assert 1.0 <= theta[0] <= 1.3
    np.testing.assert_allclose(theta[1:], [2.0, 0.0])
    np.testing.assert_allclose(found.state.baselines["mlp"]["b"], theta * 3)
    assert found.stats["liar"].cosine < 0
    assert found.stats["site-0"].cosine > 0
    assert found.stats["liar"].norm > 100
    if "krum" in rule:
        assert not found.stats["liar"].chosen


def test_long_updates_are_scaled_and_rows_are_capped():
    state = state_at([0.0, 0.0, 0.0])
    replies = [reply("a", [3.0, 0, 0], 10), reply("b", [0, 0.5, 0], 1000)]
    bound = combine(state, replies, RobustKeys(norm_bound=1.0), weighting="uniform")
    np.testing.assert_allclose(bound.state.theta, [0.5, 0.25, 0])
    assert bound.stats["a"].factor == pytest.approx(1 / 3)
    assert bound.stats["b"].factor == 1
    capped = combine(state, replies, RobustKeys(row_cap=10))
    np.testing.assert_allclose(capped.state.theta, [1.5, 0.25, 0])


def test_nothing_or_too_little_is_an_error():
    state = state_at([0.0, 0.0, 0.0])
    with pytest.raises(FederationError, match="at least one"):
        combine(state, [], RobustKeys())
    with pytest.raises(FederationError, match="at least 3"):
        combine(state, [reply("a", [1, 2, 3])], RobustKeys(aggregation="krum"))
