"""Trees that learn what settings cost: told a law with luck on top, they find the law."""

import math

import numpy as np
import pytest

from agent.actions import FIELDS, SIZES
from agent.shield import allowed_of, everything
from agent.state import HEADER
from llm_qfl.federation.errors import FederationError
from simulation.policy_costs import SEEN, Costs, features, grid_options
from simulation.policy_lessons import Lesson
from simulation.policy_states import read_state

SITES = " ".join(["45021211"] * 6)
RUN = "sites 5 round 1 left 9 loss 6 gap 1 fall {fall} distance 2 ratio 0 asked 3 steps 2 noise 1 queue 0"
PRICES = "circuits {circuits} rounds {rounds} bytes 1"
GRID = [one for one in grid_options() if not one["clients"] or one["clients"] in (1, 3, 7)]
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
    setting = grid_options()[0] | {"budget": NAMES["budget"].index("5"), "clients": NAMES["clients"].index("3")}
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


def test_a_lesson_at_best_names_each_setting_once():
    one, other = GRID[0], GRID[1]
    lesson = Lesson("", {}, (one, other, one), (0.4, 0.1, 0.0), 3, (False, False, True))
    best = lesson.at_best()
    assert (best.settings, best.regrets, best.number) == ((one, other), (0.0, 0.1), 3)
