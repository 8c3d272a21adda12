"""Plays that branch off a federation: one past, then one setting each; lessons say what each cost."""

import math

import numpy as np
import pytest

from agent.actions import FIELDS, Budget, Clients
from agent.prices import Prices
from agent.shield import everything
from llm_qfl.federation.errors import FederationError
from simulation import policy_branches as br
from simulation import policy_experience as xp
from simulation import policy_lessons as ls
from simulation.policy_arms import TRUSTED, First, Scripted, Uniform, scored
from simulation.policy_states import read_state
from simulation.policy_tables import write_table
from simulation.policy_world import Case, open_world

FIRST = First(2, 1.0)
SETTINGS = [{"budget": budget, "clients": Clients.ALL} for budget in (Budget.STEPS_1, Budget.STEPS_5)]
SETTINGS += [{"budget": budget, "clients": Clients.TWO} for budget in (Budget.STEPS_1, Budget.STEPS_5)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    source = write_table("gaussian", 11, tmp_path_factory.mktemp("tables"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_QFL_THREADS", "1")
        world = open_world(Case(f"csv:{source}", 4, 5.0, 3, 6))
        yield br.Ground(world, FIRST, 2.0, SETTINGS)  # no play gets there


@pytest.fixture(scope="module")
def found(ground):
    walk = ground.world.play(scored(Uniform(), br.AT_ANY, first=FIRST, agent={**TRUSTED, "choice": "sample"}))
    return walk, br.branches(ground, walk, np.random.default_rng(5))


def test_a_script_is_read_a_line_a_question_and_then_one_setting_stays():
    who = Scripted([{"budget": Budget.STEPS_1}, {"budget": Budget.STEPS_20}], {"budget": Budget.STEPS_5})
    asked = [int(np.argmax(who.probabilities("", everything())["budget"])) for _ in range(4)]
    assert [list(Budget)[number].value for number in asked] == ["1", "20", "5", "5"]


def test_a_script_of_one_setting_is_that_setting(ground):
    for options in SETTINGS:
        agent = scored(Scripted((), options), br.AT_ANY, first=FIRST, agent=TRUSTED)
        whole = ground.world.play(agent, target=ground.target)
        parts = ground.play([options] * 3, options)
        assert (whole.losses, whole.circuits, whole.bytes) == (parts.losses, parts.circuits, parts.bytes)


def test_what_branches_has_one_past_and_the_future_of_its_setting(ground, found):
    walk, branches = found
    assert [one["by"] for one in branches] == ["first", *br.KINDS]
    for one in branches[1:]:
        past, plays = one["after"] + 1, one["plays"]  # the first round has no question
        assert 2 <= past < 6
        for key in ("accuracies", "circuits", "bytes"):
            assert len({tuple(play[key][:past]) for play in plays}) == 1
        assert len({tuple(play["circuits"][past:]) for play in plays}) == len(SETTINGS)
        assert not any(play["once"] for play in plays)
        for play in plays:
            evaluations = play["circuits"][past:]
            assert len(set(evaluations)) == 1 or play["options"]["clients"] == "2"  # sites differ in rows
    (walked,) = [one for one in branches if one["by"] == "random"]
    assert walked["plays"][0]["circuits"][: walked["after"] + 1] == list(walk.circuits[: walked["after"] + 1])
    assert walked["state"] == [one.state.text() for one in walk.decisions if one.action][walked["after"]]


def test_the_first_state_is_tried_with_all_settings_once_and_then_the_base(ground, found):
    _, (first, *_) = found
    tried = [{name: option.value for name, option in one.items()} for one in SETTINGS]
    assert [play["options"] for play in first["plays"]] == tried
    assert [play["once"] for play in first["plays"]] == [True] * len(SETTINGS)
    assert first["after"] == 0
    base = ground.play((), br.BASE).circuits
    assert len(set(base[1:])) == 1  # a round of BASE costs the same whatever it follows
    once = first["plays"]
    assert {tuple(play["circuits"][2:]) for play in once} == {base[2:]}
    assert len({play["circuits"][1] for play in once}) == len(SETTINGS)
    assert once[0]["circuits"] == list(ground.play([SETTINGS[0]], br.BASE).circuits)


def test_plays_that_are_over_at_once_do_not_branch(ground, found):
    walk, _ = found
    over = br.Ground(ground.world, FIRST, 0.0, SETTINGS)  # held after two rounds: one question
    by = [one["by"] for one in br.branches(over, walk, np.random.default_rng(5))]
    assert by[:1] == ["first"]
    assert "once" not in by


def test_nothing_can_be_tried_after_the_last_question(found):
    walk, _ = found
    with pytest.raises(FederationError, match="nothing was asked after 9 decisions"):
        br._branch("once", [{}] * 9, list(walk.decisions), [])


def test_lessons_price_what_follows_and_what_was_spent():
    """Two settings from a state on: 1 round of 30 circuits held, or 2 more rounds of 10; by hand at two price lists."""
    plays = [
        {"options": {"budget": "5", "clients": "all"}, "accuracies": [0.5, 0.9, 0.9], "circuits": [10, 30, 30]},
        {"options": {"budget": "1", "clients": "2"}, "accuracies": [0.5, 0.6, 0.9, 0.9], "circuits": [10, 5, 5, 5]},
    ]
    plays = [{**play, "bytes": [1] * len(play["circuits"]), "once": False} for play in plays]
    state = read_state(
        f"{'11111111 ' * 3}11111111\nsites 3 round 1 left 0 loss 4 gap 1 fall 444 distance 0 ratio 0 "
        "asked 3 steps 1 noise 1 queue 0 circuits 1 rounds 1 bytes 1"
    ).text()
    masked = [f"clients {one.value}" for one in Clients if one not in (Clients.TWO, Clients.ALL)]
    one = {"state": state, "masked": [*masked, "stop yes"], "plays": plays}
    line = {
        "number": 1, "case": {"rounds": 20}, "target": 0.9, "fixed": {"circuits": 10.0, "bytes": 1.0},
        "plan": {"circuits": 10, "bytes": 1}, "plays": [], "branches": [{"by": "first", "after": 0, **one}],
    }  # fmt: skip

    def regrets(shares):
        (lesson,) = ls._priced_lessons(line, shares, np.random.default_rng(0), 1)
        return lesson.regrets

    # circuits alone: 7.0 rounds' worth of circuits against 2.5; rounds alone: 3 against 4
    assert regrets((1.0, 0.0, 0.0)) == pytest.approx((math.log(7.0 / 2.5), 0.0))
    assert regrets((0.0, 1.0, 0.0)) == pytest.approx((0.0, math.log(4 / 3)))
    assert xp.priced(plays[1], Prices(0.0, 1.0, 0.0), 0.95, 20.0) == 20.0  # never there: the full budget


@pytest.mark.parametrize("line", [{"plays": []}, {"branches": []}, {"branches": [{"by": "constant"}]}])
def test_a_line_that_does_not_branch_from_its_first_state_is_of_an_older_version(line):
    with pytest.raises(FederationError, match="older version"):
        next(br.situations(line))


def test_fields_of_a_script_are_those_of_an_action(found):
    walk, _ = found
    decision = next(one for one in walk.decisions if one.action is not None)
    assert set(br._options(decision)) == set(FIELDS)
