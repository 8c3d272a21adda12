"""Trees that learn what settings cost: told a law with luck on top, they find the law."""

import math

import numpy as np
import pytest

from agent.actions import FIELDS, SIZES
from agent.shield import allowed_of, everything
from agent.state import HEADER
from llm_qfl.federation.errors import FederationError
from simulation.policy_costs import SEEN, Costs, costs_of, features, grid_options, taught
from simulation.policy_judging import best_setting
from simulation.policy_lessons import Lesson, lessons
from simulation.policy_states import read_state

SITES = " ".join(["45021211"] * 6)
RUN = "sites 5 round 1 left 9 loss 6 gap 1 fall {fall} distance 2 ratio 0 asked 3 steps 2 noise 1 queue 0"
PRICES = "circuits {circuits} rounds {rounds} bytes 1"
GRID = grid_options(6)
NAMES = {name: [str(option.value) for option in kind] for name, kind in FIELDS.items()}
FIVE_OF_SIX = allowed_of([f"clients {one}" for one in ("7", "10", "15")])


def text(circuits, fall="555"):
    return f"{SITES}\n{RUN.format(fall=fall)} {PRICES.format(circuits=circuits, rounds=10 - circuits)}"


def steps_of(setting):
    return int(NAMES["budget"][setting["budget"]])


def law(circuits, setting):
    """Dear circuits: few steps cost least; dear rounds: many."""
    return (1 if circuits > 5 else -1) * 0.1 * math.log(steps_of(setting))


@pytest.fixture(scope="module")
def learned():
    random, found = np.random.default_rng(0), []
    for number in range(400):
        circuits = int(random.integers(1, 10))
        luck = random.normal(0, 0.3, len(GRID))
        regrets = tuple(law(circuits, one) + more for one, more in zip(GRID, luck, strict=True))
        found.append(Lesson(text(circuits), FIVE_OF_SIX, tuple(GRID), regrets, number, (False,) * len(GRID)))
    return found, Costs.fit(found, 0)


@pytest.mark.parametrize(("circuits", "steps"), [(9, 1), (1, 20)])
def test_luck_averages_out(learned, circuits, steps):
    found, costs = learned
    chosen = costs.probabilities(text(circuits), FIVE_OF_SIX)
    assert NAMES["budget"][int(chosen["budget"].argmax())] == str(steps)
    taught = costs.teach(found[0])
    assert taught.settings == tuple(GRID)
    told, played = np.array(taught.regrets), np.array(found[0].regrets)
    dear = read_state(found[0].text).header[HEADER.index("circuits")]
    true = np.array([law(dear, one) for one in GRID])
    assert np.corrcoef(told, true)[0, 1] > 0.9 > np.corrcoef(played, true)[0, 1]
    assert min(taught.regrets) == 0
    assert taught.once == (False,) * len(GRID)


def test_what_is_masked_is_neither_taught_nor_chosen(learned):
    _, costs = learned
    masked = allowed_of([f"budget {one}" for one in NAMES["budget"] if one != "5"])
    chosen = costs.probabilities(text(9), masked)
    assert {name: float(value.sum()) for name, value in chosen.items()} == dict.fromkeys(SIZES, 1.0)
    assert NAMES["budget"][int(chosen["budget"].argmax())] == "5"
    with pytest.raises(FederationError, match="none of 20 settings is allowed"):
        costs.probabilities(text(9), everything() | {"budget": (False,) * SIZES["budget"]})
    with pytest.raises(FederationError, match="no state to learn costs from"):
        Costs.fit([], 0)


def test_features_by_hand():
    setting = GRID[0] | {"budget": NAMES["budget"].index("5"), "clients": NAMES["clients"].index("3")}
    rows = features(read_state(text(4, fall="000")), [setting, setting], [True, False])
    header = dict(zip(HEADER, read_state(text(4)).header, strict=True)) | {"fall1": 0, "fall2": 0}
    action = [math.log(5), math.log(3), 0.5, math.log(2.5)]
    expected = [*(header[name] for name in SEEN), 1, *action]
    assert rows == pytest.approx(np.array([[*expected, 1], [*expected, 0]]))


def test_the_first_question_is_answered_at_the_cheaper_way_to_go_on():
    """20 steps once and then the base are cheap, 20 steps to the end are dear; in mid-run only the latter was tried."""
    some = [one for one in GRID if steps_of(one) in (1, 20)]
    cost = {(1, False): 0.5, (20, False): 1.0, (1, True): 0.6, (20, True): 0.0}
    found = []
    for number in range(400):
        for fall, ways in (("000", (False, True)), ("555", (False,))):
            tried = [(one, once) for once in ways for one in some]
            regrets = tuple(cost[steps_of(one), once] for one, once in tried)
            settings, flags = tuple(one for one, _ in tried), tuple(once for _, once in tried)
            found.append(Lesson(text(5, fall), FIVE_OF_SIX, settings, regrets, number, flags))
    costs = Costs.fit(found, 0)
    for fall, best in (("000", 20), ("555", 1)):
        only = FIVE_OF_SIX | {"budget": tuple(name in ("1", "20") for name in NAMES["budget"])}
        taught = costs.teach(Lesson(text(5, fall), only, (), (), 0, ()))
        assert steps_of(taught.settings[int(np.argmin(taught.regrets))]) == best


def experience(number, luck=0.0):
    """A federation in which a round of s steps costs s circuits and all settings need as many rounds, but for luck."""
    plays = [
        {
            "once": once,
            "options": {"budget": str(steps), "clients": clients},
            "accuracies": [0.0] * (rounds := 4 + round(luck * (steps > 2))) + [1.0, 1.0],
            "circuits": [steps] * (rounds + 2),
            "bytes": [1] * (rounds + 2),
        }
        for once in (False, True)
        for steps in (1, 2, 5, 10, 20)
        for clients in ("2", "all")
    ]
    masked = ["clients 7", "clients 10", "clients 15"]
    states = [{"after": 0, "state": text(5, fall), "masked": masked, "plays": plays} for fall in ("000", "555")]
    return {
        "number": number,
        "case": {"rounds": 40},
        "target": 0.9,
        "fixed": {"circuits": 10.0, "bytes": 1.0},
        "plan": {"circuits": 10, "bytes": 1},
        "plays": [play for play in plays if not play["once"]],
        "branches": [
            {**states[0], "by": "first", "plays": [play for play in plays if play["once"]]},
            {**states[1], "by": "followed", "plays": [play for play in plays if not play["once"]]},
        ],
    }


def test_trees_know_nothing_of_federations_that_are_held_back():
    lines = [experience(number) for number in range(20)]
    other = [experience(number, luck=30 * (number % 10 == 9)) for number in range(20)]
    one, same, new = (costs_of(some, 0) for some in (lines, other, [*lines, experience(20, luck=30)]))
    told = [costs.predict(read_state(text(5)), GRID) for costs in (one, same, new)]
    assert np.array_equal(told[0], told[1])
    assert not np.array_equal(told[0], told[2])


def test_a_federation_is_taught_by_trees_that_never_saw_it():
    lines = [experience(number) for number in range(20)]
    found = lessons(lines, 0)
    lucky = [experience(number, luck=30 * (number == 3)) for number in range(20)]
    (cloned, held), (others, _) = taught(lines, found, 0), taught(lucky, found, 0)
    assert {one.number for one in held} == {9, 19}
    assert {one.number for one in cloned} == set(range(20)) - {9, 19}
    assert sorted(one.text for one in [*cloned, *held]) == sorted(one.text for one in found)
    by = [
        {number: [one.regrets for one in some if one.number == number] for number in (3, 4)}
        for some in (cloned, others)
    ]
    assert by[0][3] == by[1][3]
    assert by[0][4] != by[1][4]


@pytest.mark.parametrize("sites", [2, 3, 5, 10, 12])
def test_no_setting_of_the_grid_is_another_one_in_other_words(sites):
    shown = " ".join(["45021211"] * min(sites, 10))
    rows = features(
        read_state(f"{shown}\n{text(5).splitlines()[1]}"), grid_options(sites), [False] * len(grid_options(sites))
    )
    assert len({tuple(row) for row in rows}) == len(rows) == 5 * (1 + sum(count < sites for count in (2, 3, 5)))


def test_a_scaled_budget_is_no_setting():
    with pytest.raises(FederationError, match=r"expected a budget in steps, got x0\.5"):
        features(read_state(text(5)), [GRID[0] | {"budget": 0}], [False])


def test_the_best_setting_for_all_may_ask_for_some_of_the_sites():
    """In two sites' federations there is no choice of two: what counts there is the same budget with all."""
    few = experience(0) | {"plays": [one for one in experience(0)["plays"] if one["options"]["clients"] == "all"]}
    many = experience(1)
    for play in many["plays"]:
        if play["options"] == {"budget": "5", "clients": "2"}:
            play |= {"accuracies": [1.0, 1.0], "circuits": [0, 0], "bytes": [0, 0]}
    assert best_setting([few, many]) == "budget=5 clients=2"
    assert best_setting([few]).startswith("budget=1 clients=all")
    with pytest.raises(FederationError, match="no experience"):
        best_setting([])


def test_a_setting_that_was_not_played_in_any_way_is_said():
    lines = [experience(number) for number in range(2)]
    lines[1]["plays"] = [one for one in lines[1]["plays"] if one["options"]["clients"] == "2"]
    lines[0]["plays"] = [one for one in lines[0]["plays"] if one["options"]["clients"] == "all"]
    with pytest.raises(FederationError, match=r"clients=all or budget=\d+ clients=all, got"):
        best_setting(lines)
