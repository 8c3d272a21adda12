"""Private sums: bounded in what a row adds, equal to the plain ones without noise, of the right spread with it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llm_qfl.federation.data.features import fit_feature_map
from llm_qfl.federation.data.sums import local_sums
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.privacy import sums as private

BOUNDS = ((-4.0, 4.0), (0.0, 10.0), (-1.0, 3.0))
CLASSES = ("a", "b")


def silence(size):
    return np.zeros(size)


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = np.array([0.0, 5.0, 1.0]) + rng.uniform(-1, 1, (count, 3)) * [3, 4, 1.5]
    x[:, 0] = np.clip(x[:, 0] + y, -4, 4)
    return x, y


@given(
    hnp.arrays(np.float64, (6, 3), elements=st.floats(-1e9, 1e9)), st.lists(st.integers(0, 1), min_size=6, max_size=6)
)
def test_no_row_adds_more_than_a_length_of_one(x, y):
    added = private.contributions(x, np.array(y), BOUNDS, 2)
    assert np.linalg.norm(added, axis=1).max() <= 1 + 1e-12


@pytest.mark.parametrize("reduction", ["discriminant", "none"])
def test_without_noise_they_are_the_plain_sums_diagonal(reduction):
    x, y = rows(60)
    got, by_class = private.private_sums(
        x, y, classes=CLASSES, reduction=reduction, min_rows=5, bounds=BOUNDS, noise=silence
    )
    expected = local_sums(x, y, classes=CLASSES, reduction=reduction, min_rows=5)
    np.testing.assert_allclose(got.counts, expected.counts)
    np.testing.assert_allclose(got.means, expected.means)
    np.testing.assert_allclose(np.diagonal(got.scatter_matrix()), np.diagonal(expected.scatter_matrix()), rtol=1e-9)
    assert by_class.tolist() == [30, 30]
    fit_feature_map(got, reduction=reduction, qubits=3)


def test_moments_and_back():
    x, y = rows(40)
    got, by_class = private.private_sums(
        x, y, classes=CLASSES, reduction="discriminant", min_rows=5, bounds=BOUNDS, noise=silence
    )
    total = private.contributions(x, y, BOUNDS, 2).sum(axis=0)
    np.testing.assert_allclose(private.to_moments(got, by_class, BOUNDS), total, atol=1e-9)


def test_noise_goes_on_everything_and_makes_usable_sums():
    x, y = rows(200)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        got, by_class = private.private_sums(
            x, y, classes=CLASSES, reduction="discriminant", min_rows=5, bounds=BOUNDS,
            noise=lambda size, rng=rng: rng.normal(scale=30, size=size),
        )  # fmt: skip
        assert (by_class >= 0).all()
        assert (by_class <= 200).all()
        if got is None:
            continue
        assert np.isfinite(got.scatter).all()
        assert (np.diagonal(got.scatter_matrix()) > 0).all()
        lows, highs = np.array(BOUNDS).T
        there = got.counts > 0
        assert (got.means[there] >= lows).all()
        assert (got.means[there] <= highs).all()


def test_noise_on_the_whole_site_is_noise_on_its_mean():
    x, y = rows(50)
    ones = {
        "classes": CLASSES,
        "reduction": "none",
        "min_rows": 5,
        "bounds": BOUNDS,
        "noise": lambda size: np.full(size, 0.001),
    }
    row, _ = private.private_sums(x, y, **ones)
    site, _ = private.private_sums(x, y, whole=True, **ones)
    plain, _ = private.private_sums(x, y, **{**ones, "noise": silence})
    np.testing.assert_allclose(site.means - plain.means, 50 * (row.means - plain.means))


def test_few_rows_send_nothing_and_ranges_must_fit():
    x, y = rows(4)
    none, by_class = private.private_sums(
        x, y, classes=CLASSES, reduction="none", min_rows=5, bounds=BOUNDS, noise=silence
    )
    assert none is None
    assert by_class.tolist() == [0, 0]
    with pytest.raises(DataError, match="ranges: expected one"):
        private.scaled(x, BOUNDS[:2])
    assert np.abs(private.scaled(x, ((-1.0, 1.0),))).max() <= 1
