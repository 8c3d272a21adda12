"""Federated sums equal the pooled ones; who may abstain does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.data.sources import load_table
from llm_qfl.federation.data.sums import FeatureSums, combine, local_sums
from llm_qfl.federation.errors import DataError, RecordError

CLASSES = ("0", "1", "2")


def pool(seed=0, rows=90, columns=5):
    """Rows with scales from 1e-3 to 1e3 and means of a thousand standard deviations."""
    rng = np.random.default_rng(seed)
    scale = np.logspace(-3, 3, columns)
    y = rng.integers(0, 3, rows)
    return (rng.normal(size=(rows, columns)) + y[:, None] + 1000) * scale, y


def moments(x, y, groups):
    """Counts, means and scatter straight from the definition, in extended precision."""
    x = x.astype(np.longdouble)
    counts = np.array([(y == g).sum() for g in groups])
    means = np.array([x[y == g].mean(axis=0) if (y == g).any() else 0 * x[0] for g in groups])
    scatter = sum(np.outer(row - means[g], row - means[g]) for row, g in zip(x, y, strict=True))
    return counts, means, scatter


def assert_close(sums, x, y, groups):
    counts, means, scatter = moments(x, y, groups)
    np.testing.assert_array_equal(sums.counts, counts)
    np.testing.assert_allclose(sums.means, means.astype(float), rtol=1e-12)
    size = np.sqrt(np.outer(np.diag(scatter), np.diag(scatter))).astype(float)
    np.testing.assert_allclose(sums.scatter_matrix() / size, (scatter / size).astype(float), rtol=0, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10_000), st.integers(1, 7), st.sampled_from(["pca", "discriminant"]))
def test_any_partition_gives_the_pooled_sums_of_the_contributing_rows(sites, seed, min_rows, reduction):
    x, y = pool(seed)
    owner = np.random.default_rng(seed).integers(0, sites, len(x))
    parts, counted = [], np.zeros(len(x), bool)
    for site in range(sites):
        mine = owner == site
        sums = local_sums(x[mine], y[mine], classes=CLASSES, reduction=reduction, min_rows=min_rows)
        for group in range(3) if reduction == "discriminant" else (slice(None),):
            rows = mine & (y == group) if reduction == "discriminant" else mine
            counted |= rows & (rows.sum() >= min_rows)
        if sums is not None:
            parts.append((f"site-{site}", sums))
    if not parts:
        assert not counted.any()
        return
    groups = y if reduction == "discriminant" else np.zeros_like(y)
    total = combine(parts[::-1])
    assert_close(total, x[counted], groups[counted], range(3 if reduction == "discriminant" else 1))
    again = combine(parts)  # the order of arrival leaves no trace
    assert all(np.array_equal(getattr(total, n), getattr(again, n)) for n in ("counts", "means", "scatter"))


def test_breast_cancer_over_four_sites():
    table = load_table("breast-cancer")
    x, y = table.values, table.labels
    parts = [
        (str(i), local_sums(x[i::4], y[i::4], classes=table.class_names, reduction="discriminant", min_rows=5))
        for i in range(4)
    ]
    assert_close(combine(parts), x, y, range(2))


def test_a_class_of_few_rows_is_left_out_of_every_sum():
    x, y = pool()
    few = np.concatenate([np.flatnonzero(y == 0)[:10], np.flatnonzero(y == 1)[:4]])
    sums = local_sums(x[few], y[few], classes=CLASSES, reduction="discriminant", min_rows=5)
    without = local_sums(x[few[:10]], y[few[:10]], classes=CLASSES, reduction="discriminant", min_rows=5)
    for name in ("counts", "means", "scatter"):
        np.testing.assert_array_equal(getattr(sums, name), getattr(without, name))
    assert sums.counts.tolist() == [10, 0, 0]
    assert sums.means[1:].tolist() == np.zeros((2, 5)).tolist()


@pytest.mark.parametrize(
    ("reduction", "rows", "sent"), [("pca", 5, True), ("pca", 4, False), ("discriminant", 4, False)]
)
def test_a_site_of_few_rows_abstains(reduction, rows, sent):
    x, y = pool()
    found = local_sums(x[:rows], 0 * y[:rows], classes=CLASSES, reduction=reduction, min_rows=5)
    assert (found is not None) == sent


def test_none_sends_no_products_of_features():
    x, y = pool()
    sums = local_sums(x, y, classes=CLASSES, reduction="none", min_rows=1)
    assert sums.scatter.shape == (5,)
    np.testing.assert_allclose(sums.scatter / len(x), x.var(axis=0), rtol=1e-9)


@pytest.mark.parametrize("reduction", ["pca", "discriminant", "none"])
@pytest.mark.parametrize("columns", [1, 4])
def test_the_wire_gives_the_same_bits(reduction, columns):
    x, y = pool(columns=columns)
    sums = local_sums(x, y, classes=CLASSES, reduction=reduction, min_rows=2)
    arrays = sums.to_arrays()
    if reduction != "none":
        assert arrays["scatter"].shape == (columns * (columns + 1) // 2,)
        mean = x - (sums.means[y] if reduction == "discriminant" else sums.means[0])
        np.testing.assert_allclose(sums.scatter_matrix(), mean.T @ mean, rtol=1e-9, atol=1e-9)
    back = FeatureSums.from_arrays(arrays, classes=CLASSES, reduction=reduction)
    assert back.groups == sums.groups
    for name in ("counts", "means", "scatter"):
        np.testing.assert_array_equal(getattr(back, name), getattr(sums, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.array([1.5, 2, 3])}, "whole numbers of rows"),
        ({"counts": np.array([-1.0, 2, 3])}, "whole numbers of rows"),
        ({"counts": np.array([0.0, 0, 0])}, "at least one row"),
        ({"counts": np.array([3.0, 2])}, "do not go together for 3 groups"),
        ({"means": np.zeros((3, 4))}, "do not go together"),
        ({"means": np.full((3, 5), np.nan)}, "not finite"),
        ({"scatter": np.zeros(14)}, "do not go together"),
        ({"scatter": -np.ones(15)}, "negative second moments"),
        ({"more": np.zeros(1)}, "expected counts, means, scatter, got counts, means, more, scatter"),
    ],
)
def test_strict_reading(change, message):
    x, y = pool()
    arrays = local_sums(x, y, classes=CLASSES, reduction="discriminant", min_rows=2).to_arrays() | change
    with pytest.raises(RecordError, match=message):
        FeatureSums.from_arrays(arrays, classes=CLASSES, reduction="discriminant")


def test_sites_that_name_other_classes():
    x, y = pool()
    one = local_sums(x[y == 2], np.zeros((y == 2).sum(), int), classes=("2",), reduction="discriminant", min_rows=1)
    two = local_sums(x[y < 2], y[y < 2], classes=("0", "1"), reduction="discriminant", min_rows=1)
    total = combine([("a", one), ("b", two)], CLASSES)
    assert total.groups == CLASSES
    assert_close(total, x, y, range(3))
    with pytest.raises(DataError, match=r"unknown classes \['2'\]"):
        combine([("a", one), ("b", two)], ("0", "1"))


def test_sums_that_do_not_go_together():
    x, y = pool()
    kinds = [local_sums(x, y, classes=CLASSES, reduction=r, min_rows=1) for r in ("pca", "discriminant", "none")]
    narrow = local_sums(x[:, :4], y, classes=CLASSES, reduction="pca", min_rows=1)
    for other in (*kinds[1:], narrow):
        with pytest.raises(DataError, match="differ in the number of features or in kind"):
            combine([("a", kinds[0]), ("b", other)])
    with pytest.raises(DataError, match="no site sent sums"):
        combine([])
    with pytest.raises(DataError, match="expected one of discriminant, pca, none, got 'lda'"):
        local_sums(x, y, classes=CLASSES, reduction="lda", min_rows=1)
