"""The split table: no leak, every row once, the same on a real site."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_qfl.federation.data.partition import Deal
from llm_qfl.federation.data.split import (
    ON_SERVER,
    TEST,
    TRAIN,
    VALIDATION,
    Fractions,
    SplitTable,
    describe,
    make_split,
    site_name,
    split_site,
)
from llm_qfl.federation.errors import DataError

LABELS = np.random.default_rng(5).integers(0, 3, 120)
shares = st.sampled_from([0.0, 0.15, 0.4, 0.8])


@settings(max_examples=40, deadline=None)
@given(shares, shares, shares, shares, st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_every_row_is_in_exactly_one_place(server_test, server_validation, site_test, site_validation, sites, seed):
    fractions = Fractions(server_test, server_validation, site_test, site_validation)
    table = make_split(LABELS, Deal("iid", sites, seed), fractions)
    places = [table.rows(site, part) for site in range(ON_SERVER, sites) for part in (TRAIN, VALIDATION, TEST)]
    np.testing.assert_array_equal(np.sort(np.concatenate(places)), np.arange(len(LABELS)))
    assert len(table.rows(ON_SERVER, TRAIN)) == 0
    assert all(len(table.rows(site, TRAIN)) for site in range(sites))
    assert (len(table.rows(ON_SERVER, TEST)) > 0) == (server_test > 0)
    assert (len(table.rows(ON_SERVER, VALIDATION)) > 0) == (server_validation > 0)


@pytest.mark.parametrize("partitioner", ["iid", "dirichlet", "shard"])
def test_a_real_site_splits_its_file_as_the_simulation_does(partitioner):
    fractions = Fractions(server_test=0.2, site_test=0.1, site_validation=0.25)
    table = make_split(LABELS, Deal(partitioner, 4, 9), fractions)
    for site in range(4):
        rows = np.flatnonzero(table.site == site)
        part = split_site(LABELS[rows], 9, site_name(site), fractions)
        np.testing.assert_array_equal(part, table.part[rows])
        # Codes are the pool's in simulation and the file's own on a site: only who is equal to whom counts.
        own = np.unique(LABELS[rows], return_inverse=True)[1]
        np.testing.assert_array_equal(split_site(own, 9, site_name(site), fractions), part)


def test_the_servers_rows_do_not_depend_on_the_deal():
    fractions = Fractions(server_test=0.25, server_validation=0.1)
    one, two = make_split(LABELS, Deal("iid", 1, 3), fractions), make_split(LABELS, Deal("shard", 5, 3), fractions)
    for part in (VALIDATION, TEST):
        np.testing.assert_array_equal(one.rows(ON_SERVER, part), two.rows(ON_SERVER, part))


def test_seeds_and_sites_have_streams_of_their_own():
    fractions = Fractions(site_validation=0.3)
    same = np.zeros(40, int)
    parts = [split_site(same, seed, name, fractions) for seed, name in ((1, "a"), (1, "b"), (2, "a"), (1, "a"))]
    np.testing.assert_array_equal(parts[0], parts[3])
    assert not np.array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[0], parts[2])


def test_shares_are_stratified():
    labels = np.repeat([0, 1, 2], [200, 100, 20])
    table = make_split(labels, Deal("iid", 1, 0), Fractions(server_test=0.25))
    assert np.bincount(labels[table.rows(ON_SERVER, TEST)]).tolist() == [50, 25, 5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(0, 1000))
def test_small_sites_keep_a_row_of_every_class_for_training(labels, seed):
    labels = np.array(labels)
    part = split_site(labels, seed, "clinic", Fractions(site_test=0.3, site_validation=0.5))
    assert set(labels[part == TRAIN]) == set(labels)


def test_five_rows_give_one_to_validation():
    assert np.bincount(split_site(np.zeros(5, int), 0, "a", Fractions(site_validation=0.15)), minlength=3)[1] == 1
    assert split_site(np.zeros(1, int), 0, "a", Fractions(site_validation=0.9)).tolist() == [TRAIN]


def test_equal_questions_are_answered_from_memory_and_cannot_be_changed():
    deal, fractions = Deal("iid", 3, 1), Fractions(site_validation=0.2)
    table = make_split(LABELS, deal, fractions)
    assert make_split(LABELS.copy(), deal, fractions) is table
    with pytest.raises(ValueError, match="read-only"):
        table.part[0] = TEST


def test_by_column():
    values = [("north", "south")[i % 2] for i in range(len(LABELS))]
    table = make_split(LABELS, Deal("column", 2, 1), Fractions(server_test=0.25), values)
    for site, name in enumerate(("north", "south")):
        assert {values[row] for row in np.flatnonzero(table.site == site)} == {name}


def test_describe_counts_rows_by_class():
    table = make_split(LABELS, Deal("iid", 3, 1), Fractions(server_test=0.25, site_validation=0.2))
    server, *sites = describe(table, LABELS, 3)
    assert server.site == "server"
    assert [site.site for site in sites] == ["site-0000", "site-0001", "site-0002"]
    assert server.test == tuple(np.bincount(LABELS[table.rows(ON_SERVER, TEST)], minlength=3))
    assert server.train == (0, 0, 0)
    assert sites[2].train == tuple(np.bincount(LABELS[table.rows(2, TRAIN)], minlength=3))
    total = np.sum([[row.train, row.validation, row.test] for row in (server, *sites)], axis=(0, 1))
    np.testing.assert_array_equal(total, np.bincount(LABELS))


def test_tables_that_cannot_be():
    with pytest.raises(DataError, match="the server holds out rows and trains on none"):
        SplitTable(np.array([ON_SERVER]), np.array([TRAIN]), 1)
    with pytest.raises(DataError, match="one site and one part"):
        SplitTable(np.array([1]), np.array([TRAIN]), 1)
    with pytest.raises(DataError, match=r"site_test expected a share from 0 to below 1, got 1.5"):
        Fractions(site_test=1.5)
