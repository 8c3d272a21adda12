"""Robust aggregation against numpy, scipy and brute force; what must hold for any updates."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import trim_mean

from llm_qfl.federation import robust
from llm_qfl.federation.errors import FederationError

MATRICES = hnp.arrays(np.float64, st.tuples(st.integers(3, 9), st.integers(1, 4)), elements=st.floats(-100, 100))
RULES = ("trimmed-mean", "median", "krum", "multi-krum")


@given(MATRICES)
def test_trimmed_mean_is_scipys(updates):
    bad = robust.assumed_bad(len(updates), 0.3)
    expected = trim_mean(updates, bad / len(updates) + 1e-9, axis=0)
    np.testing.assert_allclose(robust.trimmed_mean(updates, bad), expected, atol=1e-9)
    np.testing.assert_allclose(robust.coordinate_median(updates), np.median(updates, axis=0))


@given(MATRICES, st.integers(0, 3))
def test_krum_scores_are_brute_forces(updates, bad):
    count = len(updates)
    near = max(1, count - bad - 2)
    for number, score in enumerate(robust.krum_scores(updates, bad)):
        squared = [float(np.sum((updates[number] - updates[other]) ** 2)) for other in range(count) if other != number]
        # the nearest ones are those of the smallest sum among all choices of as many
        expected = min(sum(choice) for choice in combinations(squared, near))
        assert score == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(MATRICES, st.sampled_from(RULES))
def test_the_result_lies_within_the_updates_and_moves_with_them(updates, rule):
    result, chosen = robust.robust_mean(updates, rule, 0.2)
    assert (result >= updates.min(axis=0) - 1e-9).all()
    assert (result <= updates.max(axis=0) + 1e-9).all()
    assert len(set(chosen.tolist())) == len(chosen)
    assert set(chosen.tolist()) <= set(range(len(updates)))
    moved, _ = robust.robust_mean(updates + 8.0, rule, 0.2)  # a power of two: ties stay ties
    if rule in ("median", "trimmed-mean"):
        np.testing.assert_allclose(moved, result + 8.0, atol=1e-6)


@given(st.sampled_from(RULES), st.integers(5, 15), st.floats(1e3, 1e12), st.integers(0, 2**31))
def test_a_fifth_of_liars_cannot_leave_the_honest_range(rule, count, size, seed):
    rng = np.random.default_rng(seed)
    liars = int(0.2 * count)
    honest = rng.normal(size=(count - liars, 3))
    lies = rng.choice([-1.0, 1.0], size=(liars, 3)) * size
    result, _ = robust.robust_mean(np.concatenate([lies, honest]), rule, 0.2)
    assert (result >= honest.min(axis=0) - 1e-9).all()
    assert (result <= honest.max(axis=0) + 1e-9).all()


@given(st.integers(0, 50), st.floats(0, 0.49))
def test_fewer_than_half_are_ever_taken_to_be_bad(count, share):
    bad = robust.assumed_bad(count, share)
    assert bad >= 0
    assert count == 0 or 2 * bad < count
    assert robust.assumed_bad(10, 0.2) == 2
    assert robust.assumed_bad(4, 0.2) == 1
    assert robust.assumed_bad(15, 0.2) == 3


@given(hnp.arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)), st.floats(0, 1e3, allow_subnormal=False))
def test_scaling_down_keeps_direction_and_bound(update, bound):
    scaled, factor = robust.scale_down(update, bound)
    np.testing.assert_allclose(scaled, update * factor)
    assert 0 < factor <= 1
    if bound > 0:
        assert np.linalg.norm(scaled) <= bound * (1 + 1e-9)
    else:
        assert factor == 1


def test_krum_takes_the_crowded_place_and_says_when_it_cannot():
    updates = np.array([[0.0], [0.1], [0.2], [9.0], [50.0]])
    result, chosen = robust.robust_mean(updates, "krum", 0.2)
    assert result == [0.1]
    assert chosen.tolist() == [1]
    assert robust.robust_mean(updates, "multi-krum", 0.2)[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(FederationError, match="at least 3"):
        robust.robust_mean(updates[:2], "krum", 0.2)
    with pytest.raises(FederationError, match="at least one"):
        robust.robust_mean(updates[:0], "median", 0.2)
    with pytest.raises(FederationError, match="leaves none"):
        robust.trimmed_mean(updates[:2], 1)
    with pytest.raises(FederationError, match="unknown"):
        robust.robust_mean(updates, "mode", 0.2)
    assert robust.least_replies("krum") == 3
    assert robust.least_replies("median") == 1


def test_statistics_of_updates():
    updates = [np.array([3.0, 4.0]), np.array([0.0, 0.0]), np.array([-6.0, -8.0])]
    first, second, third = robust.update_stats(updates, [1.0, 1.0, 0.5], np.array([1.5, 2.0]), np.array([0, 1]))
    assert (first.norm, first.cosine, first.chosen) == (5.0, pytest.approx(1.0), True)
    assert second.cosine is None
    assert (third.norm, third.cosine, third.factor, third.chosen) == (10.0, pytest.approx(-1.0), 0.5, False)
