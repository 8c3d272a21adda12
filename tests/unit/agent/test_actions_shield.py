import itertools

import pytest
from pydantic import ValidationError

from agent.actions import FIELDS, SIZES, Action, Budget, Clients, Halt, Lambda, Shots
from agent.budgets import StepCost
from agent.history import History
from agent.shield import Limits, everything, local_budgets, mask, shield
from agent.termination import Termination

COST = StepCost(10, 1, 11)
STOPS = Termination(0, 0, 0, 2, 3, 0.65, 0.02, 20)
SAME = Action.at(dict(budget=2, clients=7, select=0, weight=0, shots=3, stop=0))  # noqa: C408


def limits(**more):
    values = dict(  # noqa: C408
        cost=COST, least=11, cap=1001, left=None, there=10, teaches=True, samples=True, patience=2
    )
    return Limits(**{**values, **more})


def allowed(masked, name):
    return [option.value for option, flag in zip(FIELDS[name], masked.allowed[name], strict=True) if flag]


def test_an_action_is_closed():
    assert SAME.words() == {
        "budget": "x1",
        "clients": "all",
        "select": "align",
        "weight": "0",
        "shots": "configured",
        "stop": "no",
    }
    good = {name: getattr(SAME, name) for name in FIELDS}
    for bad in ({**good, "site": "bob"}, {**good, "stop": "yes"}, {**good, "budget": 3}):
        with pytest.raises(ValidationError):
            Action(**bad)
    with pytest.raises(ValidationError):
        Action.at({"budget": 0})
    with pytest.raises(IndexError):
        Action.at({**SAME.options(), "clients": 99})
    with pytest.raises(ValidationError):
        Action.at({**SAME.options(), "clients": -1})
    with pytest.raises(ValidationError):
        SAME.budget = Budget.HALF


def test_every_option_has_a_number_and_comes_back():
    for numbers in itertools.islice(itertools.product(*(range(size) for size in SIZES.values())), 0, None, 97):
        options = dict(zip(SIZES, numbers, strict=True))
        assert Action.at(options).options() == options
    assert [one.steps for one in Budget][6:] == [1, 2, 5, 10, 20]
    assert [one.scale for one in Budget][:6] == [0.5, 0.75, 1, 1.25, 1.5, 2]
    assert [one.weight for one in Lambda] == [0, 0.1, 0.3, 0.5]
    assert Shots.CONFIGURED.of(777) == 777
    assert Shots.FEW.of(777) == 128
    assert (Clients.ALL.count(13), Clients.TWO.count(13)) == (13, 2)


def test_with_nothing_in_the_way_all_but_a_stop_is_allowed():
    masked = mask(limits(there=20), {"a": 51}, History(), STOPS)
    assert [name for name in SIZES if not all(masked.allowed[name])] == ["stop"]
    assert masked.empty == ()
    assert all(all(flags) for flags in everything().values())


@pytest.mark.parametrize(
    ("changes", "budgets", "name", "expected"),
    [
        ({"there": 3}, {"a": 51}, "clients", ["2", "3", "all"]),
        ({"there": 1}, {"a": 51}, "clients", []),  # two take part, or the rule decides
        ({"min_clients": 5}, {"a": 51}, "clients", ["5", "7", "10", "all"]),
        ({"left": 35}, {"a": 51}, "clients", ["2", "3"]),  # a step each of four is 44
        ({"teaches": False}, {"a": 51}, "weight", ["0"]),
        ({"samples": False}, {"a": 51}, "shots", ["configured"]),
        ({"cap": 51}, {"a": 31}, "budget", ["x0.5", "x0.75", "x1", "x1.25", "x1.5", "x2", "1", "2", "5"]),
        ({"cap": 51}, {"a": 51}, "budget", ["x0.5", "x0.75", "x1", "1", "2", "5"]),
        ({}, {"a": 11}, "budget", ["x1", "x1.25", "x1.5", "x2", "1", "2", "5", "10", "20"]),
        ({}, {}, "budget", ["1", "2", "5", "10", "20"]),
        ({"least": 21}, {"a": 51}, "budget", ["x0.5", "x0.75", "x1", "x1.25", "x1.5", "x2", "2", "5", "10", "20"]),
    ],
)
def test_masks_by_hand(changes, budgets, name, expected):
    masked = mask(limits(**changes), budgets, History(), STOPS)
    assert allowed(masked, name) == expected
    gone = {f"{name} {option.value}" for option in FIELDS[name]} - {f"{name} {value}" for value in expected}
    assert gone == {key for key in masked.reasons if key.startswith(f"{name} ")}
    assert all(masked.reasons.values())
    assert (name in masked.empty) == (not expected)


@pytest.mark.parametrize(
    ("losses", "may"),
    [
        ((0.6, 0.4, 0.4, 0.4), True),
        ((0.6, 0.4), False),  # too early
        ((0.6, 0.4, 0.3), False),  # still falls
        ((0.69, 0.69, 0.69, 0.69), False),  # guesses
        ((0.6, 0.3, 0.3, 0.35), False),  # worse than its best
        ((), False),
    ],
)
def test_b07_a_chosen_stop_needs_age_patience_and_quality(history_of, losses, may):
    masked = mask(limits(), {"a": 51}, history_of(*losses), STOPS)
    assert allowed(masked, "stop") == (["no", "yes"] if may else ["no"])


def test_scales_and_steps_by_hand():
    budgets = {"a": 51, "b": 500, "c": 11}

    def at(option):
        return local_budgets(SAME.model_copy(update={"budget": option}), limits(), budgets)

    assert at(Budget.DOUBLE) == {"a": 102, "b": 1000, "c": 22}
    assert at(Budget.HALF) == {"a": 25, "b": 250, "c": 11}
    assert at(Budget.STEPS_20) == {"a": 201, "b": 201, "c": 201}


def test_scales_of_one_step_add_up_over_rounds():
    """1.25 of a step is spent as one step, and remembered."""
    standing, steps = {"a": 11}, []
    for _ in range(5):
        standing = local_budgets(SAME.model_copy(update={"budget": Budget.MORE}), limits(), standing)
        steps.append(COST.steps(standing["a"]))
    assert steps == [1, 1, 1, 2, 3]  # 13, 16, 20, 25 and 31 evaluations
    assert standing["a"] == 31


def test_edits_have_reasons():
    held = shield({"a": 5000, "b": 51}, limits())
    assert held.budgets == {"a": 1001, "b": 51}
    assert held.edits == ("1 budgets into 11..1001 evaluations",)
    assert shield({"a": 51}, limits()).edits == ()
    cut = shield({"a": 101, "b": 51}, limits(left=76))
    assert sum(cut.budgets.values()) <= 76
    assert cut.edits == ("budgets cut to the 76 evaluations left",)
    broke = shield({"a": 101, "b": 51}, limits(left=21))
    assert not broke.affordable
    assert broke.budgets == {}
    assert "21 evaluations are left" in broke.edits[-1]
    assert Halt.GO_ON.value == "no"
