import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.budgets import StepCost
from agent.history import RoundRecord
from agent.rules import RULES, Regulation, grown, growth, ratio_of, regulate, regulate_sites, share_fired, shrunk
from llm_qfl.federation.config_agent import AgentConfig

COBYLA = StepCost.of("cobyla", 73, 16)  # an evaluation is a step, as in the paper
ADAM = StepCost.of("adam", 73, 44)


def paper(rule, **more):
    return Regulation(rule, symmetric=False, dead_band=0.0, increment=100, from_round=2, least=1, cap=100, **more)


def ours(rule="adaptive", least=1, cap=100, band=0.0, from_round=2):
    return Regulation(rule, True, band, 100, from_round, least, cap)


# The published code's rules, run by the authors of the reference at m = 10, r = 1.5, caps 100.
TABLE = {
    "incremental": [15, 22, 33, 49],
    "dynamic": [12, 15, 18, 22],
    "logarithmic": [19, 36, 68, 100],
    "adaptive": [15, 22, 33, 49],
    "hybrid": [25, 62, 100, 100],
}


@pytest.mark.parametrize("rule", RULES)
def test_the_five_rules_give_the_reference_table(rule):
    budget, seen = 10, []
    for _ in range(4):
        budget = regulate(paper(rule), budget, 0.6, 0.4, 3).after
        seen.append(budget)
    assert seen == TABLE[rule]


# By hand: m = 40; r = 2, 1.1 and 3.
@pytest.mark.parametrize(
    ("rule", "by_ratio"),
    [
        ("incremental", {2.0: 80, 1.1: 44, 3.0: 100}),
        ("dynamic", {2.0: 60, 1.1: 42, 3.0: 80}),
        ("logarithmic", {2.0: 83, 1.1: 69, 3.0: 95}),  # 40 ln 3 = 43.9, 40 ln 2.1 = 29.7, 40 ln 4 = 55.5
        ("adaptive", {2.0: 80, 1.1: 44, 3.0: 100}),
        ("hybrid", {2.0: 100, 1.1: 84, 3.0: 100}),
    ],
)
def test_one_step_of_each_rule_by_hand(rule, by_ratio):
    assert {r: regulate(paper(rule), 40, 0.3 * r, 0.3, 3).after for r in by_ratio} == by_ratio


def test_hybrid_adds_no_more_than_its_increment():
    rule = Regulation("hybrid", False, 0.0, 5, 2, 1, 100)
    assert regulate(rule, 10, 0.6, 0.4, 3).after == 15


@pytest.mark.parametrize("rule", RULES)
def test_paper_regulation_is_a_ratchet(rule):
    result = regulate(paper(rule), 40, 0.2, 0.4, 3)
    assert (result.fired, result.after) == ("held", 40)
    assert "never fall" in result.why


def test_the_mirrored_rules_by_hand():
    # adaptive at r = .5: 20 would have grown to 40. dynamic: half of m plus half of 2m is 1.5 m, and 26 is too few.
    # logarithmic: m (1 + ln 3) = 2.0986 m, 20 gives 41.97. hybrid: m + floor(2 m), 14 gives 42.
    expected = {"incremental": 20, "adaptive": 20, "dynamic": 27, "logarithmic": 20, "hybrid": 14}
    assert {rule: regulate(ours(rule), 40, 0.2, 0.4, 3).after for rule in RULES} == expected


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(budget=st.integers(1, 400), ratio=st.floats(0.05, 0.999))
def test_shrinking_is_the_smallest_budget_that_would_grow_back(rule, budget, ratio):
    scan = next(m for m in range(1, budget + 1) if growth(rule, m, 1 / ratio, 100) >= budget - 1e-9)  # brute force
    assert shrunk(rule, budget, ratio, 100) == scan


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(budget=st.integers(1, 400), qnn=st.floats(0, 5), teacher=st.floats(0, 5))
def test_limits_and_directions_hold(rule, budget, qnn, teacher):
    result = regulate(ours(rule, least=5, cap=300), budget, qnn, teacher, 3)
    assert 5 <= result.after <= 300
    if result.fired == "grew":
        assert qnn > teacher
        assert result.after > min(max(budget, 5), 300)
    if result.fired == "shrank":
        assert qnn < teacher
        assert result.after < min(max(budget, 5), 300)


def test_incremental_and_adaptive_are_one_rule_up_to_rounding():
    different = sum(
        grown("incremental", m, 1 + k / 100, 100, 10**9) != grown("adaptive", m, 1 + k / 100, 100, 10**9)
        for m in range(1, 101)
        for k in range(1, 301)
    )
    assert different < 100  # of 30,000


def test_floors_freeze_small_budgets_and_evaluations_do_not():
    assert regulate(paper("adaptive"), 10, 1.09, 1.0, 3).after == 10
    ten = ADAM.evaluations(10)
    wide = Regulation("adaptive", False, 0.0, 100, 2, ADAM.least, ADAM.evaluations(100))
    assert regulate(wide, ten, 1.09, 1.0, 3).after == 796  # floor(731 * 1.09)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((40, 0.5, None, 3), "no language loss"),
        ((40, math.nan, 0.5, 3), "a loss is not finite"),
        ((40, 0.5, math.inf, 3), "a loss is not finite"),
        ((40, 0.5, 0.5, 3), "losses equal"),
        ((40, 0.0, 0.0, 3), "losses equal"),
        ((40, 0.6, 0.4, 1), "not before round 2"),
        ((100, 0.6, 0.4, 3), "at the cap"),
        ((1, 0.4, 0.6, 3), "at the minimum"),
        ((40, 0.41, 0.4, 3), "within the dead band"),
        ((40, 0.39, 0.4, 3), "within the dead band"),
    ],
)
def test_every_rule_that_holds_says_why(arguments, why):
    result = regulate(ours(band=0.05), *arguments)
    assert (result.fired, result.why, result.after) == ("held", why, arguments[0])


def test_losses_of_zero_make_finite_budgets():
    for rule in RULES:
        assert regulate(ours(rule), 40, 0.3, 0.0, 3).after == 100
        assert 1 <= regulate(ours(rule), 40, 0.0, 0.3, 3).after <= 3  # logarithmic: 40 / (1 + ln 1e6) = 2.7
    assert ratio_of(1e300, 1e-300) == 1e6


def test_b11_a_cobyla_budget_is_never_below_what_scipy_takes():
    regulation = Regulation.of(AgentConfig(min_steps=1, cap_steps=5), COBYLA)
    assert (regulation.least, regulation.cap) == (18, 18)  # n + 2 at n = 16: the QPU's "1 to 5" is one budget
    assert regulate(regulation, 5, 0.6, 0.4, 3).after == 18


def test_b13_bits_against_nats_would_fire_where_the_losses_are_equal():
    nats = 0.5
    assert regulate(ours(), 40, nats, nats, 3).fired == "held"
    assert regulate(ours(), 40, nats / math.log(2), nats, 3).fired == "grew"  # what the published code compares


def test_only_sites_that_answered_are_regulated(site):
    record = RoundRecord(4, (site("b", 0.6, 0.4), site("c", 0.2, 0.4), site("new", 0.6, 0.4)))
    budgets, done = regulate_sites(ours(), {"a": 10, "b": 10, "c": 10}, record)
    assert budgets == {"a": 10, "b": 15, "c": 5}
    assert {name: result.fired for name, result in done.items()} == {"b": "grew", "c": "shrank"}


def test_shares_and_inert_cells_by_hand():
    up, down = regulate(ours(), 10, 0.6, 0.4, 3), regulate(ours(), 10, 0.4, 0.6, 3)
    same = regulate(ours(), 10, 0.4, None, 3)
    share = share_fired([[up, down], [down, down], [same, same], [same, up]])
    assert (share.rounds, share.grew, share.shrank) == (4, 0.5, 0.5)
    assert (share.site_grew, share.site_shrank, share.held) == (2 / 8, 3 / 8, {"no language loss": 3})
    assert not share.inert
    assert share_fired([[down, same], [down, same]]).inert  # it only ever saved: no win of the rule
    assert share_fired([]).inert


def test_limits_come_from_the_config_in_evaluations():
    agent = AgentConfig(min_steps=2, cap_steps=20, increment_steps=3, regulation="paper", from_round=3)
    regulation = Regulation.of(agent, ADAM)
    assert (regulation.least, regulation.cap, regulation.increment) == (147, 1461, 219)
    assert not regulation.symmetric
    assert regulation.dead_band == 0
