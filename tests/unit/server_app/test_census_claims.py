"""A census that cannot be true leaves its site out, and nobody else."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.sums import local_sums
from llm_qfl.federation.records import Census
from server_app.census import _odd_ones

CONFIG = RunConfig.from_run_config({"language.model": "none"})
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 3)), np.arange(20) % 2
SUMS = local_sums(X, Y, classes=("x", "y"), reduction="discriminant", min_rows=5).to_arrays()
ROWS = {"train": 20, "validation": 2, "test": 0}
GOOD = Census("a", True, "columns", ("p", "q", "r"), ("x", "y"), ROWS, np.array([10, 10]), SUMS)


def changed(key, change):
    array = SUMS[key].copy()
    array.flat[0] = change(array.flat[0])
    return {**SUMS, key: array}


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"class_counts": np.array([10, 2**40])}, "20 training rows, by class"),
        ({"rows": {**ROWS, "train": 10**9}}, "1000000000 training rows, by class 20"),
        ({"sums": {k: v for k, v in SUMS.items() if k != "means"}}, "sums: expected counts, means, scatter"),
        ({"sums": {**SUMS, "counts": SUMS["counts"] * 100}}, "sums of 2000 rows, it has 20"),
        ({"sums": changed("counts", lambda n: n + 0.5)}, "counts expected whole numbers"),
        ({"sums": {**SUMS, "means": np.zeros((2, 2)), "scatter": np.zeros(3)}}, "sums of 2 numbers a row, expected 3"),
        ({"sums": changed("means", lambda n: 1e300)}, "numbers beyond"),
        ({"sums": changed("scatter", lambda n: 1.7e308)}, "numbers beyond"),
        ({"sums": changed("scatter", lambda n: -1.0)}, "negative second moments"),
    ],
)
def test_a_census_that_cannot_be_true_leaves_its_site_out(lie, reason):
    liar = replace(GOOD, site="liar", **lie)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odd = _odd_ones({"a": GOOD, "b": replace(GOOD, site="b"), "liar": liar}, CONFIG)
    assert set(odd) == {"liar"}
    assert reason in odd["liar"]


def test_a_true_one_stays():
    assert _odd_ones({"a": GOOD, "b": replace(GOOD, site="b", sums=None)}, CONFIG) == {}
