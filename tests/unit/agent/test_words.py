import json

import numpy as np

from agent.actions import SIZES, Action
from agent.budgets import StepCost
from agent.choice import Fallback
from agent.decisions import Decision, Proposal, decision_line
from agent.termination import Stop
from agent.words import choices, losses_in_words, sentence, told

COST = StepCost(10, 1, 11)


def line(**changes):
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
    return json.loads(json.dumps(decision_line(Decision(**{**values, **changes}))))


def test_the_policys_round_stands_beside_the_rules():
    words = told(line(), COST)
    assert words.did == "2 sites (align), 2 to 5 steps, lambda 0.1"
    assert words.by == "policy"
    assert words.rule == "3 sites (all), 10 steps"
    assert words.why == "1 option masked; nothing edited"
    assert sentence(line(), COST) == f"policy: {words.did}; {words.why}; the rule: {words.rule}"


def test_fallbacks_and_edits_are_told():
    fallen = line(by="rule", fallback=Fallback("timeout", "no decision within 2 s"), edits=("cut",), forced=("a",))
    words = told(fallen, COST)
    assert words.why == "timeout: no decision within 2 s; cut; 1 site by the fairness window"
    assert words.rule == ""
    plain = line(by="rule", probabilities={}, weight=0.0, masked={})
    assert told(plain, COST).why == ""
    assert sentence(plain, COST) == "rule: 2 sites (align), 2 to 5 steps"


def test_stops_are_told():
    stop = Stop("plateau", "stands still")
    assert told(line(stop=stop, sites=(), budgets={}), COST).did == "stop (plateau): stands still"
    proposed = Proposal((), {}, "all", stop=stop)
    assert told(line(rule=proposed), COST).rule == "stop (plateau): stands still"
    waived = line(by="rule", rule=proposed, fallback=Fallback("timeout", "no decision within 2 s"))
    assert "the rule: stop (plateau)" in sentence(waived, COST)  # it took the round over and went on
    assert told(line(by="rule", rule=proposed, stop=stop, sites=(), budgets={}), COST).rule == ""


def test_choices_come_with_their_probability():
    options = dict.fromkeys(SIZES, 1)
    probabilities = {name: np.full(size, 0.0) for name, size in SIZES.items()}
    for value in probabilities.values():
        value[:2] = 0.25, 0.75
    asked = line(action=Action.at(options), probabilities=probabilities)
    assert choices(asked)["budget"] == "x0.75 (75%)"
    asked = line(probabilities=probabilities, by="rule")  # it was asked, the rule decided
    assert choices(asked)["clients"] == "3 (75%)"
    assert choices(line(probabilities={})) == {}


def test_both_losses_are_printed():
    clients = [{"site": site, "trained_loss": loss} for site, loss in (("a", 0.5), ("b", 0.3), ("c", 0.7))]
    closed = {
        "clients": clients,
        "language_losses": {"a": 0.4, "b": None, "c": 0.2},
        "regulated": {"a": "grew", "c": "held"},
    }
    assert losses_in_words(closed) == "F 0.500 L 0.300 grew 1 shrank 0 held 1"
    assert losses_in_words({"clients": [], "language_losses": {}, "regulated": {}}) == "F - L - grew 0 shrank 0 held 0"
