import math
import threading
import time

import numpy as np
import pytest

from agent.actions import SIZES, Action
from agent.choice import Deadline, Fallback, Trust, ask, entropy_of, mutual_information, pick
from agent.shield import everything
from llm_qfl.federation.errors import LanguageError

TRUST = Trust(max_entropy=0.9, min_probability=0.35, regress_rounds=2, tolerance=0.02)


def sure(**best):
    """.9 on one option of every field."""
    found = {}
    for name, size in SIZES.items():
        found[name] = np.full(size, 0.1 / (size - 1))
        found[name][best.get(name, 0)] = 0.9
    return found


class Fixed:
    def __init__(self, answer):
        self.answer = answer

    def probabilities(self, text, allowed):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def asked(answer, allowed=None, seconds=5.0):
    return ask(Fixed(answer), "state", allowed or everything(), Deadline(seconds))


def test_good_probabilities_pass():
    found = asked(sure(clients=3))
    assert not isinstance(found, Fallback)
    action = pick(found, None)
    assert action.options() == {**dict.fromkeys(SIZES, 0), "clients": 3}


def broken(name, change):
    found = sure()
    found[name] = change(found[name])
    return found


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (broken("budget", lambda value: value * np.nan), "not finite"),
        (broken("budget", lambda value: value * np.inf), "not finite"),
        (broken("budget", lambda value: value * 0.9), "schema"),
        (broken("budget", lambda value: -value), "schema"),
        (broken("budget", lambda value: value[:-1]), "schema"),
        ({"budget": sure()["budget"]}, "schema"),
        ({}, "schema"),
        (LanguageError("weights are damaged"), "scorer failed"),
        (RuntimeError("CUDA out of memory"), "scorer failed"),
    ],
)
def test_drill_a_bad_answer_is_a_fallback_with_its_reason(answer, reason):
    found = asked(answer)
    assert isinstance(found, Fallback)
    assert found.reason == reason
    assert found.why
    assert found.counts


def test_drill_weight_on_a_masked_option_is_refused():
    allowed = {**everything(), "stop": (True, False)}
    assert asked(sure(), allowed).reason == "schema"
    found = {**sure(), "stop": np.array([1.0, 0.0])}
    assert not isinstance(asked(found, allowed), Fallback)


def test_drill_a_slow_decision_times_out_and_does_not_pile_up():
    release, calls = threading.Event(), []

    class Slow:
        def probabilities(self, text, allowed):
            calls.append(text)
            release.wait(10)
            return sure()

    deadline = Deadline(0.05)
    began = time.perf_counter()
    first, second = (ask(Slow(), "state", everything(), deadline) for _ in range(2))
    assert time.perf_counter() - began < 2
    assert (first.reason, second.reason) == ("timeout", "timeout")
    assert "0.05 s" in first.why
    assert "still runs" in second.why
    assert len(calls) == 1
    release.set()
    deadline._late.join(5)
    assert not isinstance(ask(Fixed(sure()), "state", everything(), Deadline(5)), Fallback)


def test_an_unexpected_error_is_not_swallowed():
    with pytest.raises(KeyError):
        asked(KeyError("a bug"))


def uniform(allowed):
    return {name: np.array(flags) / sum(flags) for name, flags in allowed.items()}


def test_drill_a_policy_that_guesses_is_doubted():
    doubt = TRUST.doubts(uniform(everything()), everything())
    assert doubt.reason == "entropy"
    assert TRUST.doubts(sure(), everything()) is None


def test_fields_without_a_choice_do_not_count():
    """Five sure answers to no question do not hide one guess."""
    allowed = {name: (True, *[False] * (size - 1)) for name, size in SIZES.items()}
    certain = {name: np.array(flags, float) for name, flags in allowed.items()}
    assert TRUST.doubts(certain, allowed) is None
    allowed["clients"] = (True,) * SIZES["clients"]
    guess = {**certain, "clients": np.full(SIZES["clients"], 1 / SIZES["clients"])}
    assert TRUST.doubts(guess, allowed).reason == "entropy"


def test_low_best_options_are_doubted_below_the_entropy_limit():
    """Half of the options at .25 each: entropy ln 4 of ln 8, two thirds; best .25 < .35."""
    allowed = {name: (False,) * size for name, size in SIZES.items()} | {"clients": (True,) * 8}
    found = {name: np.zeros(size) for name, size in SIZES.items()} | {"clients": np.repeat([0.25, 0.0], 4)}
    doubt = TRUST.doubts(found, allowed)
    assert "0.25" in doubt.why
    assert "0.35" in doubt.why


@pytest.mark.parametrize(
    ("losses", "fires"),
    [
        ((0.5, 0.6, 0.6), True),
        ((0.5, 0.6), False),
        ((0.5, 0.6, 0.51), False),  # back within the tolerance
        ((0.5, 0.51, 0.6), False),
        ((0.6, 0.5, 0.4), False),
        ((), False),
    ],
)
def test_drill_two_rounds_worse_than_the_best_are_a_regression(history_of, losses, fires):
    found = TRUST.regressed(history_of(*losses))
    assert (found is not None) == fires
    if found is not None:
        assert found.reason == "regression"


def test_draws_follow_the_probabilities_and_their_seed():
    found, draws = sure(budget=4), []
    for seed in range(400):
        draws.append(pick(found, np.random.default_rng(seed)).options()["budget"])
        assert isinstance(pick(found, np.random.default_rng(seed)), Action)
    assert np.mean(np.array(draws) == 4) == pytest.approx(0.9, abs=0.06)  # four deviations
    assert draws[:20] == [pick(found, np.random.default_rng(seed)).options()["budget"] for seed in range(20)]


def test_entropy_by_hand():
    assert entropy_of(np.array([0.5, 0.5, 0.0])) == pytest.approx(math.log(2))
    assert entropy_of(np.array([1.0, 0.0])) == 0


def test_b23_mutual_information_by_hand():
    """One that always does the same knows nothing of its state; one that tells two states apart knows ln 2."""
    same = [np.array([0.3, 0.7])] * 5
    assert mutual_information(same, "aaaaa") == pytest.approx(0, abs=1e-12)
    assert mutual_information([np.array([1.0, 0.0]), np.array([0.0, 1.0])], "aa") == pytest.approx(math.log(2))
    # H(.5) - mean of H(.9): a channel with an error of one in ten
    noisy = mutual_information([np.array([0.9, 0.1]), np.array([0.1, 0.9])], "aa")
    assert noisy == pytest.approx(math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert mutual_information([], []) == 0


def test_b23_what_a_mask_does_is_not_information_about_the_state():
    """One distribution, renormalised under two masks, is blind; two states under either mask tell ln 2 and 0."""
    blind = np.array([0.2, 0.2, 0.6])
    masked = np.array([0.5, 0.5, 0.0])
    both = [blind, masked, blind, masked]
    masks = [(True, True, True), (True, True, False)] * 2
    assert mutual_information(both, "aaaa") > 0.1
    assert mutual_information(both, masks) == pytest.approx(0, abs=1e-12)
    sure = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), masked[:2], masked[:2]]
    assert mutual_information(sure, "aabb") == pytest.approx(math.log(2) / 2)
