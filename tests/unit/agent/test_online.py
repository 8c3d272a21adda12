"""The bandit on top of the policy: one step by hand, what it may not touch, and that it finds the better option."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.actions import SIZES, Action
from agent.online import LIMIT, Online

EVEN = {name: np.full(size, 1 / size) for name, size in SIZES.items()}
FIRST = Action.at(dict.fromkeys(SIZES, 0))


def taught(rewards, rate=0.5, actions=None, probabilities=EVEN):
    bandit = Online(rate)
    for number, reward in enumerate(rewards, start=2):
        said = bandit.tilted(probabilities)
        action = FIRST if actions is None else actions[number - 2]
        bandit = bandit.chose(number, action, said).earned(number, reward)
    return bandit


def test_a_step_by_hand():
    """Two rewards to compare with, then one that is 1.5 standard deviations above their mean."""
    bandit = taught([0.1, 0.3, 0.35])
    assert bandit.preferences["weight"] == pytest.approx((0.5 * 1.5 * 0.75, *[-0.5 * 1.5 * 0.25] * 3))
    odds = np.exp(np.array(bandit.preferences["weight"]))
    assert bandit.tilted(EVEN)["weight"] == pytest.approx(odds / odds.sum())


def test_without_a_rate_nothing_changes():
    bandit = taught([0.1, 0.3, 5.0], rate=0.0)
    assert bandit == Online()
    assert bandit.tilted(EVEN) is EVEN


def test_one_reward_teaches_nothing():
    assert taught([0.1, 0.2]).preferences == {}


@pytest.mark.parametrize("count", [3, 5, 12])
@pytest.mark.parametrize("reward", [0.1, -0.013])
def test_equal_rewards_teach_nothing(count, reward):
    """Their standard deviation is rounding, which differs between machines: nothing may be divided by it."""
    nearly = [reward * (1 + 1e-12 * (number % 3)) for number in range(count)]
    for values in taught(nearly).preferences.values():
        assert values == pytest.approx([0.0] * len(values), abs=1e-9)


def test_stop_is_left_alone():
    bandit = taught([0.1, 0.3, -9.0, 2.0])
    assert "stop" not in bandit.preferences
    assert set(bandit.preferences) == set(SIZES) - {"stop"}


def test_a_round_that_the_rule_decided_teaches_nothing():
    bandit = taught([0.1, 0.3])
    assert bandit.earned(99, 7.0) is bandit


def test_rewards_are_compared_with_the_last_ones():
    """A round wins less the later it comes: an old large reward is no measure of a late one."""
    late = [0.02, 0.01, 0.02, 0.01, 0.02]
    early, never = taught([9.0, *late]), taught(late)
    after = [bandit.chose(50, FIRST, EVEN).earned(50, 0.03).preferences["budget"][0] for bandit in (early, never)]
    before = [bandit.preferences["budget"][0] for bandit in (early, never)]
    assert after[0] - before[0] == pytest.approx(after[1] - before[1])
    assert after[0] > before[0]


@given(
    rewards=st.lists(st.floats(-5, 5), max_size=12),
    allowed=st.lists(st.booleans(), min_size=SIZES["budget"], max_size=SIZES["budget"]).filter(any),
)
def test_what_it_gives_is_a_distribution_over_the_allowed_options(rewards, allowed):
    flags = np.array(allowed, float)
    said = {**EVEN, "budget": flags / flags.sum()}
    action = Action.at({**dict.fromkeys(SIZES, 0), "budget": int(flags.argmax())})
    bandit = taught(rewards, 3.0, [action] * len(rewards), said)
    for name, values in bandit.tilted(said).items():
        assert values.sum() == pytest.approx(1)
        assert (values[said[name] == 0] == 0).all()
        assert (values[said[name] > 0] > 0).all()
    assert all(abs(h) <= LIMIT for values in bandit.preferences.values() for h in values)


def test_it_is_written_and_read_back_exactly():
    bandit = taught([0.1, 0.3, 0.7 / 3]).chose(9, FIRST, EVEN)
    assert Online.from_json(json.loads(json.dumps(bandit.to_json()))) == bandit


def test_where_the_best_option_is_taken_a_bad_one_is_left():
    """`agent.choice=best`: no draws; the policy's favourite earns less and less, the next one more."""
    bandit, said = Online(0.3), {**EVEN, "weight": np.array([0.4, 0.3, 0.2, 0.1])}
    taken, reward = [], 0.0
    for number in range(2, 22):
        now = bandit.tilted(said)
        taken.append(int(now["weight"].argmax()))
        reward += 0.1 if taken[-1] else -0.1
        action = Action.at({**dict.fromkeys(SIZES, 0), "weight": taken[-1]})
        bandit = bandit.chose(number, action, now).earned(number, reward)
    assert taken[0] == 0
    assert taken[-1] != 0


@pytest.mark.parametrize("better", [0, 3])
def test_it_finds_the_option_that_earns_more(better):
    """Draws of `weight`, one of whose options earns a standard deviation more than the rest."""
    random = np.random.default_rng(3)
    bandit = Online(0.2)
    for number in range(2, 202):
        said = bandit.tilted(EVEN)
        chosen = {**dict.fromkeys(SIZES, 0), "weight": int(random.choice(4, p=said["weight"]))}
        earned = float(chosen["weight"] == better) + random.normal()
        bandit = bandit.chose(number, Action.at(chosen), said).earned(number, earned)
    found = bandit.tilted(EVEN)["weight"]
    assert found.argmax() == better
    assert found[better] > 0.5
    assert found[better] <= 1 / (1 + 3 * math.exp(-2 * LIMIT))
