import math

import pytest

from agent.history import History, RoundRecord
from agent.termination import Termination
from llm_qfl.federation.config_agent import AgentConfig


def rules(align=0.0, distance=0.0, plateau=0.0, patience=2, after=1, floor=0.65, tolerance=0.02, rounds=20):
    return Termination(align, distance, plateau, patience, after, floor, tolerance, rounds)


def test_b07_alignment_fires_after_its_patience(history_of):
    align = rules(align=0.05)
    assert align.check(history_of(0.60, 0.44, language=0.4)) is None
    stop = align.check(history_of(0.60, 0.44, 0.43, language=0.4))
    assert stop is not None
    assert stop.rule == "alignment"
    assert "0.05 nats" in stop.why
    assert "2 rounds" in stop.why


@pytest.mark.parametrize(
    ("losses", "teacher"),
    [
        ((0.60, 0.46, 0.44), 0.4),  # only one round within
        ((0.44, 0.43), None),  # no language model
        ((0.20, 0.20, 0.20), 0.4),  # far better than it is not aligned either
        ((0.69, 0.69, 0.69), 0.69),  # two models that guess
        ((0.40, 0.44, 0.44), 0.42),  # worse than the run's best
    ],
)
def test_b07_alignment_does_not_fire(history_of, losses, teacher):
    assert rules(align=0.05).check(history_of(*losses, language=teacher)) is None


def test_the_sites_language_losses_stand_in_for_the_servers(site):
    sites = (site("a", 0.5, 0.3, examples=300), site("b", 0.5, 0.5, examples=100))
    record = RoundRecord(1, sites, server_loss=0.36)
    assert record.teacher_loss == pytest.approx(0.35)
    twice = History((record, RoundRecord(2, sites, server_loss=0.36)))
    assert rules(align=0.02).check(twice).rule == "alignment"
    assert rules(align=0.005).check(twice) is None


def test_b07_a_plateau_fires_after_its_patience(history_of):
    plateau = rules(plateau=0.01)
    assert plateau.check(history_of(0.6, 0.5, 0.495)) is None
    stop = plateau.check(history_of(0.6, 0.5, 0.495, 0.497))
    assert stop.rule == "plateau"
    assert "0.5000" in stop.why


@pytest.mark.parametrize(
    "losses",
    [
        (0.6, 0.5, 0.48, 0.46),  # falls
        (0.6, 0.5, 0.499, 0.485),  # falls within the patience
        (0.69, 0.69, 0.69, 0.69),  # stands still, but guesses
        (0.6, 0.5, 0.53, 0.53),  # stands still, but was better
        (0.5, 0.5),  # too short
    ],
)
def test_b07_a_plateau_does_not_fire(history_of, losses):
    assert rules(plateau=0.01).check(history_of(*losses)) is None


def test_slow_progress_is_measured_from_the_best_not_round_by_round(history_of):
    """Three falls of .004 are one of .012: no plateau of .01 with a patience of 3."""
    assert rules(plateau=0.01, patience=3).check(history_of(0.5, 0.496, 0.492, 0.488)) is None
    assert rules(plateau=0.01, patience=2).check(history_of(0.5, 0.496, 0.492, 0.488)).rule == "plateau"


def distances(site, *values, server=0.4):
    return History(tuple(RoundRecord(k, (site("a", server + d),), server_loss=server) for k, d in enumerate(values, 1)))


def test_b07_the_papers_distance_rule_compares_with_the_round_before(site):
    """The published loop forgot the former distance in every round, so that its difference was infinite."""
    rule = rules(distance=0.02)
    assert rule.check(distances(site, 0.3, 0.1, 0.11)) is None
    stop = rule.check(distances(site, 0.3, 0.1, 0.11, 0.10))
    assert stop.rule == "distance"
    assert rule.check(distances(site, 0.3, 0.2, 0.1)) is None
    assert rules(distance=0.02, patience=1).check(distances(site, 0.1, 0.11)).rule == "distance"  # the paper's patience


def test_not_before_a_round(history_of):
    assert rules(plateau=0.01, after=5).check(history_of(0.5, 0.5, 0.5, 0.5)) is None
    assert rules(plateau=0.01, after=5).check(history_of(0.5, 0.5, 0.5, 0.5, 0.5)).rule == "plateau"


def test_the_last_round_and_the_budget_stop_whatever_the_loss(history_of):
    bad = history_of(0.9, 0.9, 0.9)
    assert rules(rounds=3).check(bad).why == "3 of 3 rounds are done"
    stop = rules().check(bad, left=100, least=148)
    assert stop.rule == "budget"
    assert "100" in stop.why
    assert "148" in stop.why
    assert rules().check(bad, left=148, least=148) is None
    assert rules().check(bad, left=None, least=148) is None
    assert rules().check(History(), left=0, least=1).rule == "budget"
    assert rules(align=1, distance=1, plateau=1).check(History()) is None


def test_without_validation_nothing_but_rounds_and_budget_stops():
    empty = History(tuple(RoundRecord(k, ()) for k in range(1, 9)))
    assert rules(align=1, distance=1, plateau=1).check(empty) is None


def test_mode_qfl_has_no_early_stop():
    assert Termination.of(AgentConfig(stop_plateau=0.1, stop_align=0.1), 2, 20).plateau == 0
    on = Termination.of(AgentConfig(mode="llm-qfl-all", stop_plateau=0.1), 3, 20)
    assert on.plateau == 0.1
    assert on.floor == pytest.approx(0.95 * math.log(3))
