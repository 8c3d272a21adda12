import numpy as np

from agent.actions import SIZES
from agent.budgets import StepCost
from agent.choice import Fallback
from agent.decisions import Decision, Proposal
from agent.history import RoundRecord
from agent.rules import Regulated
from agent.termination import Stop
from agent.words import losses_in_words, told

COST = StepCost(10, 1, 11)


def decision(**changes):
    values = {
        "server_round": 3,
        "by": "policy",
        "sites": ("a", "b"),
        "budgets": {"a": 21, "b": 51},
        "weight": 0.1,
        "shots": 0,
        "stop": None,
        "select": "align",
        "rule": Proposal(("a", "b", "c"), dict.fromkeys("abc", 101), "all"),
        "probabilities": {name: np.full(size, 1 / size) for name, size in SIZES.items()},
        "masked": {"stop yes": "too early"},
    }
    return Decision(**{**values, **changes})


def test_the_policys_round_stands_beside_the_rules():
    words = told(decision(), COST)
    assert words.did == "2 sites (align), 2 to 5 steps, lambda 0.1"
    assert words.rule == "3 sites (all), 10 steps"
    assert words.why.startswith("policy (budget 9%, clients 12%")
    assert words.why.endswith("1 options masked; nothing edited")


def test_fallbacks_and_edits_are_told():
    words = told(
        decision(by="rule", fallback=Fallback("timeout", "no decision within 2 s"), edits=("cut",), forced=("a",)), COST
    )
    assert words.why == "rule, timeout: no decision within 2 s; cut; 1 sites by the fairness window"
    assert words.rule == ""
    assert told(decision(by="rule", probabilities={}, weight=0.0), COST).why == "rule"


def test_stops_are_told():
    stop = Stop("plateau", "stands still")
    assert told(decision(stop=stop, sites=(), budgets={}), COST).did == "stop (plateau): stands still"
    assert told(decision(rule=Proposal((), {}, "all", stop=stop)), COST).rule == "stop (plateau): stands still"


def test_both_losses_are_printed(site):
    record = RoundRecord(1, (site("a", 0.5, 0.4), site("b", 0.3), site("c", 0.7, 0.2)))
    regulated = {"a": Regulated("adaptive", "grew", 1, 2, 1.2, ""), "c": Regulated("adaptive", "held", 1, 1, 1.2, "")}
    assert losses_in_words(record, regulated) == "F 0.500 L 0.300 grew 1 shrank 0 held 1"
    assert losses_in_words(RoundRecord(1, ()), {}) == "F - L - grew 0 shrank 0 held 0"
