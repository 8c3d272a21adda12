import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.history import History, RoundRecord
from agent.selection import Selector, oort_utilities
from llm_qfl.federation.config_agent import AgentConfig

SITES = [f"site-{n:04d}" for n in range(6)]


def seen(site, losses, language=None, server=0.4, asked=None, server_round=1):
    sites = tuple(
        site(name, loss, None if language is None else language[k], examples=20 * (k + 1), seconds=1.0 + k)
        for k, (name, loss) in enumerate(zip(SITES, losses, strict=False))
    )
    return History((RoundRecord(server_round, sites, tuple(asked or SITES), server_loss=server),))


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.3, 3), (0.7, 7), (0.99, 9), (1.0, 10), (0.01, 2)])
def test_the_count_is_the_floor_of_the_share_but_two_at_least(fraction, count):
    assert Selector(1).count(fraction, 10) == count


def test_the_count_never_passes_who_is_there():
    assert Selector(1).count(0.5, 1) == 1
    assert Selector(1, least=1).count(0.1, 10) == 1  # the paper's one
    assert Selector(1, least=5).count(0.1, 3) == 3


@pytest.mark.parametrize("align_to", ["server", "language"])
@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.floats(0.01, 2), min_size=6, max_size=6, unique=True),
    language=st.lists(st.floats(0.01, 2), min_size=6, max_size=6),
    count=st.integers(2, 5),
)
def test_align_takes_the_subset_with_the_smallest_sum(align_to, losses, language, count):
    from agent.history import SiteRecord

    sites = tuple(SiteRecord(name, 50, losses[k], language[k]) for k, name in enumerate(SITES))
    history = History((RoundRecord(1, sites, tuple(SITES), server_loss=0.4),))
    chosen = Selector(7, align_to).choose("align", count, history, SITES[::-1], 2).sites
    distance = {name: abs(losses[k] - (0.4 if align_to == "server" else language[k])) for k, name in enumerate(SITES)}
    best = min(sum(distance[name] for name in subset) for subset in itertools.combinations(SITES, count))
    assert sum(distance[name] for name in chosen) == pytest.approx(best)


def test_oort_takes_the_subset_of_most_use(site):
    history = seen(site, [0.9, 0.8, 0.3, 0.2, 0.6, 0.1])
    utility = {}
    for k, loss in enumerate([0.9, 0.8, 0.3, 0.2, 0.6, 0.1]):  # the formula again, in plain numbers
        statistical = 20 * (k + 1) * loss / (20 * 5 * 0.6)
        staleness = np.sqrt(0.1 * np.log(4) / 1)
        seconds = 1.0 + k
        utility[SITES[k]] = (statistical + staleness) * ((3.5 / seconds) ** 2 if seconds > 3.5 else 1)
    assert oort_utilities(history.known(), 4) == pytest.approx(utility)
    for count in (2, 3, 4):
        chosen = Selector(7).choose("oort", count, history, SITES, 4).sites
        best = max(itertools.combinations(SITES, count), key=lambda subset: sum(utility[name] for name in subset))
        assert chosen == best


def test_random_is_seeded_and_fair():
    draws = [Selector(7).choose("random", 2, History(), SITES, number).sites for number in range(1, 200)]
    assert draws == [Selector(7).choose("random", 2, History(), SITES[::-1], number).sites for number in range(1, 200)]
    assert draws != [Selector(8).choose("random", 2, History(), SITES, number).sites for number in range(1, 200)]
    counts = np.unique(np.concatenate(draws), return_counts=True)[1]
    assert len(counts) == 6
    # 66 expected, a standard deviation of 6.6
    assert counts.min() > 40


def test_all_takes_all(site):
    assert Selector(7).choose("all", 2, seen(site, [0.5] * 6), SITES, 2).sites == tuple(SITES)


def test_sites_that_never_answered_come_first(site):
    history = seen(site, [0.4, 0.41, 0.42])
    chosen = Selector(7).choose("align", 4, history, SITES, 2)
    assert set(SITES[3:]) < set(chosen.sites)
    assert SITES[0] in chosen.sites
    assert set(chosen.scores) == set(SITES[:3])


def test_a_distance_is_that_of_the_round_it_was_measured_in(site):
    first = seen(site, [0.4, 0.5, 0.9, 0.9, 0.9, 0.9], server=0.4)
    later = first.then(RoundRecord(2, (site(SITES[2], 0.1),), (SITES[2],), server_loss=0.1))
    # site 2 is at its server's loss now; sites 0 and 1 are not punished for a server that went on without them
    assert Selector(7).choose("align", 2, later, SITES, 3).sites == (SITES[0], SITES[2])


def play(selector, mode, count, rounds, sites=SITES, losses=(0.4, 0.4, 0.9, 0.9, 0.9, 0.9)):
    from agent.history import SiteRecord

    history, draws = History(), []
    for number in range(1, rounds + 1):
        chosen = selector.choose(mode, count, history, sites, number)
        answers = tuple(SiteRecord(name, 50, losses[sites.index(name)]) for name in chosen.sites)
        history = history.then(RoundRecord(number, answers, chosen.sites, server_loss=0.4))
        draws.append(chosen)
    return draws


@pytest.mark.parametrize(("count", "window"), [(2, 3), (2, 4), (2, 9), (3, 2), (4, 5), (1, 6)])
def test_the_window_holds_without_a_larger_round_where_that_can_be(count, window):
    draws = play(Selector(7, window=window, least=1), "align", count, 40)
    assert {len(draw.sites) for draw in draws} == {count}
    for start in range(len(draws) - window + 1):
        assert set().union(*(draw.sites for draw in draws[start : start + window])) == set(SITES)


def test_the_window_raises_the_count_where_it_must():
    draws = play(Selector(7, window=2), "align", 2, 12)  # 2 x 2 < 6
    for first, second in itertools.pairwise(draws):
        assert set(first.sites) | set(second.sites) == set(SITES)
    assert any(len(draw.sites) > 2 for draw in draws)
    assert any(draw.forced for draw in draws)


def test_without_a_window_far_sites_are_never_asked_again():
    draws = play(Selector(7, window=0), "align", 2, 20)
    assert all(draw.sites == tuple(SITES[:2]) for draw in draws[3:])
    assert not any(draw.forced for draw in draws)


def test_the_paper_selects_one_client():
    selector = Selector.of(AgentConfig(fraction=0.1, min_clients=1, fairness_window=0), 7)
    assert selector.count(0.1, 10) == 1
    assert selector.count(0.1, 3) == 1


def test_ours_never_selects_one_of_many():
    assert Selector.of(AgentConfig(fraction=0.1), 7).count(0.1, 10) == 2


def test_a_draw_looks_at_no_loss(site):
    history = seen(site, [0.45, 0.52, 0.61, 0.43, 0.72, 0.83])
    assert Selector(7).choose("random", 2, history, SITES, 3) == Selector(7).choose("random", 2, History(), SITES, 3)


@pytest.mark.parametrize("mode", ["align", "oort"])
def test_names_carry_no_weight(mode, site):
    """Other names for the same numbers: the same numbers are chosen, wherever no tie is broken by the draw."""
    losses = [0.45, 0.52, 0.61, 0.43, 0.72, 0.83]
    history = seen(site, losses)
    renamed = {name: f"zz-{9 - k}" for k, name in enumerate(SITES)}
    import dataclasses

    record = history.rounds[0]
    other = dataclasses.replace(
        record,
        sites=tuple(dataclasses.replace(one, site=renamed[one.site]) for one in record.sites),
        asked=tuple(renamed.values()),
    )
    mine = Selector(7).choose(mode, 3, history, SITES, 3).sites
    theirs = Selector(7).choose(mode, 3, History((other,)), list(renamed.values()), 3).sites
    assert {renamed[name] for name in mine} == set(theirs)
