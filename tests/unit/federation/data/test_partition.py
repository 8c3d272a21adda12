"""Partitions: every row once, seeded, no global generator, refusals."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.data.partition import Deal, partition
from llm_qfl.federation.errors import DataError

LABELS = np.random.default_rng(3).integers(0, 3, 101)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["iid", "dirichlet", "shard"]), st.integers(1, 9), st.integers(20, 60), st.integers(0, 2**32 - 1)
)
def test_every_row_goes_to_one_site(partitioner, sites, rows, seed):
    labels = LABELS[:rows]
    parts = partition(labels, Deal(partitioner, sites, seed, alpha=5.0))
    assert len(parts) == sites
    assert min(map(len, parts)) >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(rows))


def test_seeded_and_no_global_generator():
    before, numbers = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for partitioner in ("iid", "dirichlet", "shard"):
        one = partition(LABELS, Deal(partitioner, 4, 11))
        two = partition(LABELS.copy(), Deal(partitioner, 4, 11))
        assert one is two  # from memory
        other = partition(LABELS, Deal(partitioner, 4, 12))
        assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numbers  # noqa: NPY002


def test_iid_is_even_and_mixed_dirichlet_is_not():
    labels = np.repeat([0, 1], 200)
    even = partition(labels, Deal("iid", 4, 1))
    assert [len(part) for part in even] == [100] * 4
    assert all(30 < labels[part].sum() < 70 for part in even)  # 50 +- 4 standard deviations
    uneven = partition(labels, Deal("dirichlet", 4, 1, alpha=0.1))
    shares = [labels[part].mean() for part in uneven]
    assert max(shares) - min(shares) > 0.5


def test_shards_hold_few_classes():
    labels = np.repeat(np.arange(10), 20)
    assert all(len(set(labels[part])) <= 4 for part in partition(labels, Deal("shard", 10, 5)))


def test_a_column_gives_each_value_a_site(capfd):
    values = ["c", "a", "b", "a", "c", "c"]
    parts = partition(np.zeros(6, int), Deal("column", 3, 0), values)
    assert [part.tolist() for part in parts] == [[1, 3], [2], [0, 4, 5]]
    assert capfd.readouterr().err == ""
    with pytest.raises(DataError, match=r"3 different values, expected one for each of the 4 sites; run 3 sites"):
        partition(np.zeros(6, int), Deal("column", 4, 0), values)
    with pytest.raises(DataError, match=r"needs data\.partition-column"):
        partition(np.zeros(6, int), Deal("column", 3, 0))


def test_an_uneven_draw_is_drawn_again_and_then_refused():
    labels = np.repeat([0, 1], 20)
    for seed in range(10):  # some of these need a second draw
        parts = partition(labels, Deal("dirichlet", 4, seed, alpha=0.5, min_rows=2))
        assert min(map(len, parts)) >= 2
    with pytest.raises(DataError, match=r"fewer than 1 of the 40 rows, in 20 draws; raise data.alpha \(now 0.01\)"):
        partition(labels, Deal("dirichlet", 10, 0, alpha=0.01))


def test_impossible_deals():
    with pytest.raises(DataError, match="3 rows cannot give 4 sites 1 rows each; run fewer sites"):
        partition(np.zeros(3, int), Deal("iid", 4, 0))
    with pytest.raises(DataError, match="expected one of iid, dirichlet, shard, column, got 'x'"):
        partition(np.zeros(3, int), Deal("x", 2, 0))
