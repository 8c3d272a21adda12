"""Federations without processes against `run_federation`, arms behind one protocol, experience at any prices."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from agent.actions import SIZES, Budget, Clients, Lambda
from agent.prices import Prices
from agent.shield import everything
from llm_qfl.federation.errors import FederationError, LanguageError
from simulation import policy_experience as xp
from simulation.lines import read_lines
from simulation.policy_arms import (
    DEFAULT,
    TRUSTED,
    First,
    Sampled,
    Scripted,
    Setting,
    Uniform,
    grid,
    one_hot,
    rule,
    scored,
    static,
)
from simulation.policy_bandits import TPE, LinUCB
from simulation.policy_lessons import lessons
from simulation.policy_states import elsewhere, prices_of, read_state, repriced, samples
from simulation.policy_tables import KINDS, write_table
from simulation.policy_teachers import Recording, check_recording, read_recording, stand_in
from simulation.policy_world import Case, Played, open_world
from simulation.run import run_federation

pytestmark = pytest.mark.usefixtures("_one_thread")
PRICES = Prices(1e-6, 1.0, 1e-6)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    source = write_table("gaussian", 11, tmp_path_factory.mktemp("tables"))
    return Case(f"csv:{source}", sites=4, alpha=5.0, seed=3, rounds=3, more=(("training.steps", 2),))


@pytest.fixture(scope="module")
def world(case):
    return open_world(case, stand_in(1.0, every=2))


@pytest.fixture(scope="module")
def _one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_QFL_THREADS", "1")
        yield


def test_the_fixed_plan_is_the_run_itself(case, world):
    played, run = world.play(tested=True), run_federation(case.flat(), sites=case.sites)
    closed = run.finished.rounds
    assert played.losses[1:] == pytest.approx([one.validation.loss for one in closed], abs=1e-12)
    assert played.accuracies == tuple(one.validation.accuracy for one in closed)
    assert played.circuits == tuple(sum(r.spent.circuits for r in one.work) for one in closed)
    assert played.test_accuracies[-1] == run.summary["test_accuracy"]
    assert len(played.test_accuracies) == len(played.accuracies)


def test_a_play_seed_leaves_the_deal_and_changes_the_start(case, world):
    same, other = (open_world(replace(case, play_seed=seed)) for seed in (case.seed, case.seed + 1))
    for site, part in world.partitions.items():
        np.testing.assert_array_equal(part.train.x, other.partitions[site].train.x)
    assert same.opened.setup.digest() == other.opened.setup.digest() == world.opened.setup.digest()
    assert same.play().losses == open_world(case).play().losses
    assert same.play().losses[0] != other.play().losses[0]


def test_a_static_setting_with_all_sites_is_the_fixed_plan(world):
    fixed, same = world.play(), world.play(static(Setting(2, Clients.ALL)))
    assert (same.losses, same.circuits, same.test_accuracies) == (fixed.losses, fixed.circuits, fixed.test_accuracies)


def test_sites_hear_what_their_language_model_says_in_that_round(world, monkeypatch):
    class Heard:
        kind = "recorded"

        def __init__(self):
            self.soft_asked, self.loss_asked = set(), set()

        def loss(self, site, server_round):
            self.loss_asked.add((site, server_round))
            return 0.1 * server_round

        def server_loss(self, server_round):
            return None

        def soft(self, site, server_round):
            self.soft_asked.add((site, server_round))
            return np.full((len(world.partitions[site].train), 2), 0.5)

    heard = Heard()
    monkeypatch.setattr(world, "teacher", heard)
    played = world.play(scored(Scripted((), {"weight": Lambda.HIGH, "clients": Clients.ALL}), PRICES, agent=TRUSTED))
    asked = {(site, one.server_round) for one in played.decisions for site in one.sites}
    assert {number for _, number in asked} == {1, 2, 3}
    assert heard.loss_asked == asked
    assert {pair for pair in asked if pair[1] > 1} <= heard.soft_asked <= asked


def test_a_play_can_be_repeated_and_cut_at_the_target(world):
    one = static(Setting(5, Clients.TWO))
    whole, again, cut = world.play(one), world.play(one), world.play(one, target=0.0)
    assert whole.losses == again.losses
    assert cut.losses == whole.losses[:3]
    assert cut.stop.rule == "target"
    assert cut.test_accuracies == ()


def test_every_arm_decides_through_one_protocol(world):
    arms = {
        "rule": rule("adaptive"),
        "selected": rule("hybrid", selected=True),
        "constant": scored(Scripted((), {"budget": Budget.STEPS_5}), PRICES, first=First(2, 0.5), agent=TRUSTED),
        "random": scored(Uniform(), PRICES, agent={**TRUSTED, "choice": "sample"}),
        "linucb": scored(LinUCB(), PRICES, agent=TRUSTED),
        "tpe": scored(lambda _: TPE(1), PRICES, agent=TRUSTED),
    }
    for name, arm in arms.items():
        played = world.play(arm)
        by = [one.by for one in played.decisions]
        assert by == (["rule"] * 3 if name in ("rule", "selected") else ["rule", "policy", "policy"]), name
        assert all(len(one.sites) >= 2 for one in played.decisions)
        assert all(circuits > 0 for circuits in played.circuits)


def test_the_rules_see_the_teacher_and_static_settings_do_not(world):
    seen = world.play(rule("adaptive")).decisions[-1].regulated
    assert {one.why for one in seen.values()} != {"no language loss"}
    blind = world.play(static(Setting(2, Clients.ALL))).decisions[-1].regulated
    assert {one.why for one in blind.values()} == {"no language loss"}


def test_learners_are_told_their_rewards(world):
    told = []

    class Learner(Scripted):
        def learn(self, decision, reward):
            told.append((decision.server_round, reward))

    world.play(scored(Learner((), {}), PRICES, agent=TRUSTED))
    assert [number for number, _ in told] == [2, 3]  # the first loss has nothing before it to be compared with
    assert all(math.isfinite(reward) for _, reward in told)


def test_linucb_prefers_what_paid():
    learner = LinUCB(alpha=0.01)
    run = "sites 4 round 3 left 9 loss 3 gap 1 fall 780 distance 4 ratio 2 asked 4 steps 2 noise 1 queue 0"
    state = read_state(f"65252131 52142131\n{run} circuits 1 rounds 9 bytes 1")

    class Made:
        def __init__(self, budget):
            self.state = state
            self.action = type("Action", (), {"budget": budget, "clients": Clients.ALL})()

    for _ in range(20):
        learner.learn(Made(Budget.STEPS_1), 1.0)
        for other in (Budget.STEPS_2, Budget.STEPS_5, Budget.STEPS_10, Budget.STEPS_20):
            learner.learn(Made(other), -1.0)
    found = learner.probabilities(state.text(), everything())
    assert found["budget"].argmax() == list(Budget).index(Budget.STEPS_1)
    assert found["clients"].argmax() == list(Clients).index(Clients.ALL)


def test_a_masked_wish_falls_to_the_nearest_allowed():
    allowed = {name: [True] * size for name, size in SIZES.items()}
    allowed["clients"] = [False, True, False, False, False, False, False, True]  # three, or all
    found = one_hot({**DEFAULT, "clients": Clients.TEN}, allowed)
    assert found["clients"].argmax() == 7
    assert all(value.sum() == 1 for value in found.values())


def test_draws_are_noted(world):
    sampler = Sampled(Uniform(), np.random.default_rng(0))
    played = world.play(scored(sampler, PRICES, agent=TRUSTED))
    assert [options for _, _, options in sampler.taken] == [one.action.options() for one in played.decisions[1:]]


def test_states_come_back_and_take_other_prices(world):
    state = world.play(scored(Scripted((), {}), PRICES, agent=TRUSTED)).decisions[2].state
    assert read_state(state.text()) == state
    dear = repriced(state, (0.9, 0.08, 0.02))
    changed = [n for n, (a, b) in enumerate(zip(state.header, dear.header, strict=True)) if a != b]
    assert set(changed) <= {12, 13, 14}
    assert dear.header[12:15] == (9, 1, 1)
    with pytest.raises(FederationError, match="expected 17 buckets"):
        read_state("loss 3")


def test_noise_queue_and_budget_are_drawn_where_experience_holds_them_still(world):
    state = world.play(scored(Scripted((), {}), PRICES, agent=TRUSTED)).decisions[2].state
    random = np.random.default_rng(0)
    found = [elsewhere(state, random) for _ in range(200)]
    changed = {n for one in found for n, (a, b) in enumerate(zip(state.header, one.header, strict=True)) if a != b}
    assert changed <= {2, 15, 16}  # left, noise, queue
    assert all(one.clients == state.clients for one in found)
    assert {one.header[15] for one in found} == {1, 2, 3, 4}
    assert {one.header[2] for one in found} == set(range(1, 10))
    assert all((one.header[16] > 0) <= (one.header[15] == 4) for one in found)
    assert 60 < sum(one == state for one in found) < 140
    assert [samples(one) for one in found] == [one.header[15] != 1 for one in found]


def test_prices_divide_a_round_of_the_plan():
    prices = prices_of((0.5, 0.3, 0.2), 2000, 400)
    assert prices.cost(2000, 1, 400) == pytest.approx(1.0)
    assert prices.shares(2000, 400) == pytest.approx((0.5, 0.3, 0.2))


def test_returns_follow_the_priced_cost_to_the_target():
    played = Played((0.8, 0.6, 0.4, 0.4), (0.5, 0.9, 0.9), (10, 10, 10), (0, 0, 0), (), (), 30)
    prices = Prices(0.1, 0.0, 0.0)
    reached = played.to_target(prices, 0.9, 60.0)
    assert (reached.cost, reached.server_round) == (pytest.approx(3.0), 3)
    missed = played.rewarded(prices, 0.95, 60.0)
    assert missed.total == pytest.approx(0.5 - 0.05 - 0.5 - 57 / 60)  # fall, spent, the last loss, what is missing
    assert played.rewarded(prices, 0.9, 60.0).total > missed.total


def test_experience_is_priced_afterwards_and_killed_runs_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(xp, "STEPS", (Budget.STEPS_1, Budget.STEPS_5))
    monkeypatch.setattr(xp, "COUNTS", (Clients.TWO, Clients.ALL))
    monkeypatch.setattr(xp, "TUNED", (2,))
    real = xp.draw_federation
    monkeypatch.setattr(xp, "draw_federation", lambda number, tables: real(number, tables, rounds=4))
    path, told = tmp_path / "worlds.jsonl", []
    assert xp.gather(path, [4], tmp_path / "tables", until=lambda: False, say=told.append) == 1
    with path.open("a") as file:
        file.write('{"number": 5, "ca')  # a kill
    assert [line["number"] for line in read_lines(path)] == [4]
    assert xp.gather(path, [4, 6], tmp_path / "tables", until=lambda: False, say=told.append) == 2
    line, more = read_lines(path)
    assert (line["number"], more["number"]) == (4, 6)
    dear = prices_of((0.98, 0.01, 0.01), line["fixed"]["circuits"], line["fixed"]["bytes"])
    costs = {
        " ".join(map(str, play["options"].values())): xp.priced(play, dear, line["target"], line["case"]["rounds"])
        for play in line["plays"]
    }
    assert costs["1 2"] < costs["5 all"]
    found = lessons([line], 0, prices=2, states=2)
    assert found
    for one in found:
        assert min(one.regrets) == 0
        assert len(one.settings) == len(one.regrets)
        assert all(one.allowed[name][number] for setting in one.settings for name, number in setting.items())
    dearest = max(zip(found[0].regrets, found[0].settings, strict=True), key=lambda pair: pair[0])[1]
    assert set(dearest) == {"budget", "clients", "select", "weight", "shots", "stop"}
    sampling = [one for one in lessons([line], 0, prices=20, states=2) if samples(read_state(one.text))]
    assert sampling
    assert all(one.allowed["shots"] == (True,) * 4 for one in sampling)
    assert all(setting["shots"] == 3 for one in sampling for setting in one.settings)  # as configured
    json.dumps(line)


def test_a_damaged_line_is_not_passed_over(tmp_path):
    path = tmp_path / "worlds.jsonl"
    path.write_text('{"number": 1}\n{"num\n{"number": 2}\n')
    with pytest.raises(FederationError, match="line 2 is damaged"):
        list(read_lines(path))


def test_drawn_federations_are_equal_for_equal_numbers_and_never_of_a_comparison(tmp_path):
    assert xp.draw_federation(7, tmp_path) == xp.draw_federation(7, tmp_path)
    kinds = {xp.draw_federation(number, tmp_path).case.source.rsplit("/", 1)[1].split("-")[0] for number in range(12)}
    assert kinds <= set(KINDS)
    assert not kinds & {"breast", "digits", "human", "tweet"}


def test_a_recording_comes_back_and_is_checked(tmp_path, world):
    held = Recording(
        {1: {"a": 0.5}, 3: {"a": 0.25}},
        {
            1: {"a": np.array([[0.25, 0.75]]), "c": np.array([[1.0, 0.0]])},  # c has no row to validate on
            3: {"a": np.array([[0.5, 0.5]]), "c": np.array([[0.5, 0.5]])},
        },
        {"model": "tiny"},
    )
    held.write(tmp_path / "one.npz")
    back = read_recording(tmp_path / "one.npz")
    assert [back.loss("a", number) for number in (1, 2, 3, 9)] == [0.5, 0.5, 0.25, 0.25]
    assert back.loss("b", 1) is None
    np.testing.assert_array_equal(back.soft("a", 2), [[0.25, 0.75]])
    assert (back.kind, back.about) == ("recorded", {"model": "tiny"})
    np.testing.assert_array_equal(back.soft("c", 1), [[1.0, 0.0]])
    assert back.loss("c", 1) is None
    check_recording(back, {"a": 1, "c": 1}, 2)
    with pytest.raises(LanguageError, match="made for other rows"):
        check_recording(back, {"a": 2}, 2)
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(LanguageError, match="cannot be read"):
        read_recording(tmp_path / "bad.npz")


def test_a_recorded_loss_is_clipped_as_a_reported_one_is(case):
    """3 ln 2 with two classes, where most sites' losses are small, as with what sites report."""
    names = sorted(open_world(case).partitions)
    losses = dict(zip(names, (13.0, 0.5, 0.5, 0.5), strict=True))
    deciders = []

    def kept(world):
        deciders.append(rule("adaptive")(world))
        return deciders[-1]

    open_world(case, lambda _: Recording({1: losses}, {})).play(kept)
    for record in deciders[0].history.rounds:
        found = {one.site: one.language_loss for one in record.sites}
        assert found == {**losses, names[0]: pytest.approx(3 * math.log(2))}


def test_the_stand_in_learns_and_says_what_it_is(world):
    teacher = world.teacher
    assert teacher.kind == "stand-in"
    site = next(iter(world.partitions))
    soft = teacher.soft(site, 1)
    assert soft.shape == (len(world.partitions[site].train), 2)
    np.testing.assert_allclose(soft.sum(axis=1), 1)


def test_the_grid_is_every_budget_with_every_number_of_sites():
    assert len({setting.name for setting in grid()}) == 20
