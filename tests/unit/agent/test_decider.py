import json
import math
from dataclasses import replace

import numpy as np
import pytest

from agent.actions import FIELDS, SIZES, Budget, Clients, Halt, Lambda, Select, Shots
from agent.budgets import StepCost
from agent.decider import Decider
from agent.decisions import conduct, decision_line
from agent.history import RoundRecord, SiteRecord, Teachers
from agent.means import Means
from agent.memory import Memory
from agent.prices import Prices
from agent.shield import allowed_of
from agent.state import TENTHS, Setting, bucket
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import ClientReport, RoundPlan, RoundSummary, Scores, Spent

COST = StepCost(10, 1, 11)
SITES = [f"site-{n:04d}" for n in range(6)]
PRICES = Prices(0.0, 1.0, 0.0)


class Says:
    """A policy that always says the same; it remembers what it was asked."""

    def __init__(self, sureness=0.9, **options):
        self.options, self.sureness, self.asked = options, sureness, []

    def probabilities(self, text, allowed):
        self.asked.append((text, allowed))
        found = {}
        for name, size in SIZES.items():
            flags = np.array(allowed[name], float)
            weights = flags * (1 - self.sureness) / size
            wanted = self.options.get(name)
            at = 0 if wanted is None else list(type(wanted)).index(wanted)
            at = at if flags[at] else int(flags.argmax())
            weights[at] += self.sureness
            found[name] = weights / weights.sum()
        return found


def decider(mode="policy", scorer=None, setting=None, means=None, **agent):
    values = {"distill_weight": 0.3, "fairness_window": 0, "stop_plateau": 0.0, "stop_align": 0.0, **agent}
    setting = {"rounds": 20, "classes": 2, "cost": COST, "prices": PRICES, **(setting or {})}
    given = {"seed": 7, "first_budget": 51, "shots": 1024, "teaches": True, "scorer": scorer, **(means or {})}
    return Decider(AgentConfig(mode=mode, **values), Setting(**setting), Means(**given))


def answer(decision, losses, language=0.4, server=0.5, number=None):
    sites = tuple(SiteRecord(site, 100, losses[SITES.index(site)], language) for site in decision.sites)
    evaluations = sum(COST.spent(budget) for budget in decision.budgets.values())
    settled = tuple((decision.server_round, site) for site in decision.sites)
    return RoundRecord(
        number or decision.server_round,
        sites,
        decision.sites,
        server_loss=server,
        evaluations=evaluations,
        settled=settled,
    )


def without(record, site, budget):
    """The same round, but for the answer of one site."""
    return replace(
        record,
        sites=tuple(one for one in record.sites if one.site != site),
        evaluations=record.evaluations - COST.spent(budget),
        settled=tuple(task for task in record.settled if task[1] != site),
    )


LOSSES = [0.50, 0.52, 0.60, 0.70, 0.80, 0.90]


def test_llm_qfl_all_regulates_every_sites_budget():
    run = decider("llm-qfl-all")
    first = run.decide(1, SITES[::-1])
    assert first.budgets == dict.fromkeys(SITES, 51)
    assert (first.by, first.select, first.weight, first.shots, first.stop) == ("rule", "all", 0.3, 1024, None)
    run.close(answer(first, LOSSES))
    second = run.decide(2, SITES)
    assert second.budgets == {
        site: math.floor(51 * loss / 0.4 + 1e-9) for site, loss in zip(SITES, LOSSES, strict=True)
    }
    assert {one.fired for one in second.regulated.values()} == {"grew"}


def test_b08_selected_sites_are_the_ones_that_train():
    run = decider("llm-qfl-selected", fraction=0.34)
    plan = run.decide(1, SITES)
    for number in (1, 2, 3):  # two of six a round: everybody has answered then
        assert len(plan.sites) == 2
        run.close(answer(plan, LOSSES))
        plan = run.decide(number + 1, SITES)
    assert plan.sites == (SITES[0], SITES[1])  # nearest to .5
    assert set(plan.budgets) == set(plan.sites)


def test_b22_equal_inputs_give_equal_decisions():
    def play(order):
        run = decider("llm-qfl-selected", select="random", fairness_window=4)
        plans = []
        for number in range(1, 8):
            plan = run.decide(number, order)
            run.close(answer(plan, LOSSES))
            plans.append((plan.sites, plan.budgets))
        return plans

    assert play(SITES) == play(SITES[::-1])


def test_without_soft_labels_nothing_is_distilled():
    assert decider("llm-qfl-all", means={"teaches": False}).decide(1, SITES).weight == 0


def test_b07_a_plateau_ends_the_run_with_a_reason():
    run = decider("llm-qfl-all", stop_plateau=0.01, stop_after=3, stop_patience=2)
    stops = []
    for number in range(1, 5):
        plan = run.decide(number, SITES)
        stops.append(plan.stop)
        if plan.stop is None:
            run.close(answer(plan, LOSSES, server=0.4))
    assert stops[:3] == [None, None, None]
    assert stops[3].rule == "plateau"
    assert plan.sites == ()
    assert plan.budgets == {}
    json.dumps(decision_line(plan), allow_nan=False)


def test_the_run_budget_is_never_passed():
    run = decider("llm-qfl-all", budget=1000)
    spent = 0
    for number in range(1, 30):
        plan = run.decide(number, SITES)
        if plan.stop is not None:
            break
        record = answer(plan, LOSSES)
        spent += record.evaluations
        run.close(record)
    assert plan.stop.rule == "budget"
    assert 1000 - 6 * 11 < spent <= 1000
    assert any("left" in edit for one in run.decisions for edit in one.edits)


@pytest.mark.parametrize("mode", ["llm-qfl-all", "policy"])
def test_a_task_without_an_answer_counts_until_the_answer_comes(mode):
    """Budget 200: three sites get 51 each. One is late: the others must not get what it may still use."""
    three, more = SITES[:3], {"scorer": Says(budget=Budget.STEPS_5, clients=Clients.TWO)} if mode == "policy" else {}
    run, setting = decider(mode, budget=200, setting={"limit": 200}, **more), {"limit": 200}
    first = run.decide(1, three)
    assert first.budgets == dict.fromkeys(three, 51)
    run.close(without(answer(first, LOSSES), three[2], 51))
    resumed = decider(mode, budget=200, setting=setting, **more)
    resumed.remember(Memory.from_json(json.loads(json.dumps(run.memory.to_json()))))
    second = run.decide(2, three[:2])
    assert resumed.decide(2, three[:2]).budgets == second.budgets
    spent = sum(COST.spent(one) for one in second.budgets.values())
    assert 22 <= spent <= 200 - 153
    late = answer(second, LOSSES)
    late = replace(late, evaluations=late.evaluations + 21, settled=(*late.settled, (1, three[2])))  # it used 21 of 51
    resumed.close(late)
    third = resumed.decide(3, three[:2])
    assert third.budgets
    assert sum(COST.spent(one) for one in third.budgets.values()) <= 200 - 102 - 21 - spent
    if mode == "policy":
        assert second.state.header[2] == bucket(47 / 200, TENTHS)  # the policy is shown what the shield holds it to


def test_a_lost_task_counts_as_used_up():
    """Its site is asked again; what it was given before stays spent."""
    run = decider("llm-qfl-all", budget=200)
    first = run.decide(1, SITES[:2])
    run.close(without(answer(first, LOSSES), SITES[0], 51))  # 51 told, 51 of the site that never answered
    second = run.decide(2, SITES[:2])
    assert sum(COST.spent(one) for one in second.budgets.values()) <= 98
    run.close(answer(second, LOSSES))
    third = run.decide(3, SITES[:2])
    assert third.stop.rule == "budget"


class Fails(Says):
    """A policy that breaks down in one decision, or (`at` 0) in all of them."""

    def __init__(self, at, **options):
        super().__init__(**options)
        self.at = at

    def probabilities(self, text, allowed):
        found = super().probabilities(text, allowed)
        if self.at in (0, len(self.asked)):
            raise RuntimeError("out of memory")
        return found


def test_a_passing_failure_on_a_plateau_does_not_end_the_run():
    """Who decides when to stop is the policy; one decision that came too late must not do so for good."""
    run, plan = policy_run(Fails(at=8, clients=Clients.ALL), rounds=12, server=0.4, stop_plateau=0.001)
    fallen = run.decisions[8]
    assert (fallen.by, fallen.fallback.reason, fallen.stop) == ("rule", "scorer failed", None)
    assert fallen.rule.stop.rule == "plateau"  # what the rule would have done is on record
    assert fallen.sites == tuple(SITES)
    assert (plan.server_round, plan.by, plan.stop) == (12, "policy", None)


@pytest.mark.parametrize(
    ("means", "reason"),
    [
        ({"missing": "no file"}, "missing model"),
        ({"scorer": Says(), "ranges": {"sites": (1, 2)}}, "out of range"),
        ({"scorer": Fails(at=0)}, "scorer failed"),
    ],
)
def test_a_run_in_which_no_policy_ever_decides_stops_as_the_rule_does(means, reason):
    run = decider(means=means, stop_plateau=0.001)
    for number in range(1, 13):
        plan = run.decide(number, SITES)
        if plan.stop is not None:
            break
        run.close(answer(plan, LOSSES, server=0.4))
    assert (plan.stop.rule, plan.fallback.reason) == ("plateau", reason)


def test_a_resumed_run_knows_that_its_policy_decided():
    run, _ = policy_run(Says(clients=Clients.ALL), rounds=8, server=0.4, stop_plateau=0.001)
    resumed = decider(scorer=Fails(at=0), stop_plateau=0.001)
    resumed.remember(run.memory, [json.loads(json.dumps(decision_line(one))) for one in run.decisions])
    plan = resumed.decide(8, SITES)
    assert (plan.by, plan.stop, plan.rule.stop.rule) == ("rule", None, "plateau")


def policy_run(scorer, rounds=3, losses=LOSSES, server=0.5, **more):
    run = decider(scorer=scorer, **more)
    for number in range(1, rounds + 1):
        plan = run.decide(number, SITES)
        if number < rounds:
            run.close(answer(plan, losses, server=server))
    return run, plan


def test_the_policy_decides_from_the_second_round():
    scorer = Says(budget=Budget.STEPS_2, clients=Clients.TWO, weight=Lambda.LOW, select=Select.ALIGN)
    run, plan = policy_run(scorer, fraction=1.0)
    assert [one.by for one in run.decisions] == ["rule", "policy", "policy"]
    assert run.decisions[0].fallback.reason == "no history"
    assert plan.budgets == {SITES[0]: 21, SITES[1]: 21}
    assert plan.weight == 0.1
    assert plan.rule is not None  # what the rule would have done is on record
    assert set(plan.rule.budgets) != set()
    assert plan.state.text() == scorer.asked[-1][0]
    assert not any(site in scorer.asked[-1][0] for site in SITES)
    summed = conduct("policy", run.decisions, 0.2)
    assert (summed.kind, summed.with_history, summed.fallbacks, summed.fallback_rate) == ("policy", 2, 0, 0.0)


def test_the_policys_way_to_select_and_its_shots_are_carried_out():
    found = {}
    for mode, shots in ((Select.ALIGN, Shots.FEW), (Select.OORT, Shots.MANY), (Select.RANDOM, Shots.CONFIGURED)):
        scorer = Says(select=mode, clients=Clients.TWO, shots=shots)
        run = decider(scorer=scorer, means={"samples": True}, select="align")
        run.close(answer(run.decide(1, SITES), LOSSES))
        plan = run.decide(2, SITES)
        assert (plan.by, plan.select) == ("policy", mode.mode)
        assert plan.shots == shots.of(1024)
        found[mode] = plan.sites
    assert found[Select.ALIGN] != found[Select.OORT]  # the nearest to the server, the ones with most to learn
    assert Shots.FEW.of(1024) != Shots.MANY.of(1024) != 1024


def test_scales_follow_what_a_site_was_given_last():
    scorer = Says(budget=Budget.DOUBLE, clients=Clients.ALL)
    run, _ = policy_run(scorer, fraction=1.0)
    assert [set(one.budgets.values()) for one in run.decisions] == [{51}, {102}, {201}]  # 20 steps are the most


def test_a_new_site_stands_where_the_others_do():
    scorer = Says(budget=Budget.SAME, clients=Clients.ALL)
    run = decider(scorer=scorer)
    plan = run.decide(1, SITES[:4])
    run.close(answer(plan, LOSSES))
    scorer.options["budget"] = Budget.STEPS_1
    run.close(answer(run.decide(2, SITES[:4]), LOSSES))
    scorer.options["budget"] = Budget.SAME
    assert run.decide(3, SITES).budgets == dict.fromkeys(SITES, 11)


def test_the_policy_may_stop_only_when_the_shield_allows():
    scorer = Says(stop=Halt.STOP, clients=Clients.ALL)
    run, plan = policy_run(scorer, rounds=3, server=0.4, stop_after=4, stop_patience=2)
    assert plan.stop is None
    assert "stop yes" in plan.masked
    assert plan.probabilities["stop"][1] == 0
    run, plan = policy_run(scorer, rounds=6, server=0.4, stop_after=4, stop_patience=2)
    stopped = next(one for one in run.decisions if one.stop is not None)
    assert (stopped.server_round, stopped.stop.rule, stopped.sites) == (5, "policy", ())


def test_the_fairness_window_holds_under_the_policy():
    scorer = Says(budget=Budget.STEPS_1, clients=Clients.TWO, select=Select.ALIGN)
    run, _ = policy_run(scorer, rounds=12, fairness_window=3)
    for start in range(1, 10):
        assert set().union(*(one.sites for one in run.decisions[start : start + 3])) == set(SITES)
    assert any(one.forced for one in run.decisions)


class Raises:
    def probabilities(self, text, allowed):
        raise RuntimeError("broken")


class Nan(Says):
    def probabilities(self, text, allowed):
        return {name: value * np.nan for name, value in super().probabilities(text, allowed).items()}


@pytest.mark.parametrize(
    ("scorer", "more", "reason"),
    [
        (None, {"means": {"missing": "agent.policy: no such file"}}, "missing model"),
        (Nan(), {}, "not finite"),
        (Raises(), {}, "scorer failed"),
        (Says(sureness=0.0), {}, "entropy"),
        (Says(), {"means": {"ranges": {"noise": (3, 4)}}}, "out of range"),
        (Says(), {"min_clients": 7}, "masked"),
    ],
)
def test_drills_end_in_the_rule_with_their_reason(scorer, more, reason):
    run, plan = policy_run(scorer, **more)
    assert (plan.by, plan.fallback.reason) == ("rule", reason)
    assert plan.sites == plan.rule.sites != ()
    assert plan.budgets == plan.rule.budgets
    line = decision_line(plan)
    assert line["fallback"]["reason"] == reason
    assert line["fallback"]["why"]
    json.dumps(line, allow_nan=False)
    summed = conduct("policy", run.decisions, 0.2)
    assert (summed.kind, summed.fallback_rate, summed.reasons) == ("rule", 1.0, {reason: 2})


def test_drill_one_client_left():
    run = decider(scorer=Says())
    run.close(answer(run.decide(1, SITES), LOSSES))
    plan = run.decide(2, SITES[:1])
    assert (plan.by, plan.fallback.reason, plan.sites) == ("rule", "masked", (SITES[0],))


def test_drill_regression():
    run = decider(scorer=Says(clients=Clients.ALL))
    for number, loss in enumerate((0.4, 0.6, 0.6), 1):
        run.close(answer(run.decide(number, SITES), LOSSES, server=loss))
    assert run.decide(4, SITES).fallback.reason == "regression"


def test_drill_a_stale_round():
    run = decider(scorer=Says())
    first = run.decide(1, SITES)
    run.close(answer(first, LOSSES))
    assert run.decide(1, SITES).fallback.reason == "stale"
    with pytest.raises(FederationError, match="closed before"):
        run.close(answer(first, LOSSES))


def told(plan, losses):
    """The round as the server has it: what the sites say, on their own validation rows."""
    rows = np.array([5, 5])

    def scores(loss):
        return Scores(10 * loss, rows, rows)

    reports = tuple(
        ClientReport(
            site,
            plan.server_round,
            np.zeros(2),
            100,
            scores(losses[site]),
            scores(losses[site]),
            0.7,
            0.7,
            Spent(51, 510),
            1.0,
        )
        for site in plan.sites
    )
    pooled = scores(sum(losses[site] for site in plan.sites) / len(plan.sites))
    sent = RoundPlan(plan.server_round, plan.sites, 51, 1.0)
    return RoundSummary(plan.server_round, sent, reports, {}, True, pooled, {}, 0, 0, 1.0, "")


def test_drill_an_adversary_moves_nobody_elses_budget():
    def second(loss):
        run = decider("llm-qfl-all", setting={"lag": 1}, cap_steps=10**6)
        run.teachers = Teachers(dict.fromkeys(SITES, 0.4))
        plan = run.decide(1, SITES)
        run.close_round(told(plan, dict(zip(SITES, [*LOSSES[:5], loss], strict=True))))
        return run.decide(2, SITES).budgets

    honest, lying = second(0.9), second(1e12)
    assert {site: honest[site] for site in SITES[:5]} == {site: lying[site] for site in SITES[:5]}
    assert lying[SITES[5]] <= 3 * 51 * 0.7 / 0.4 + 1


def test_drill_an_adversary_does_not_draw_the_server_to_itself():
    """F_s of what the sites say: with a claim of 50 nats a row in it, `align` would choose nobody but the liar."""
    three = SITES[:3]
    run = decider("llm-qfl-selected", setting={"lag": 1}, select="align", fraction=0.5)
    first = replace(run.decide(1, SITES[:4]), sites=tuple(SITES[:4]))  # all four answer once
    run.close_round(told(first, {**dict(zip(three, [0.30, 0.35, 0.40], strict=True)), SITES[3]: 50.0}))
    claim = 3 * math.log(2)  # counts as three times what guessing costs, at most
    assert run.history.rounds[0].server_loss == pytest.approx((0.30 + 0.35 + 0.40 + claim) / 4)
    assert set(run.decide(2, SITES[:4]).sites) == {SITES[1], SITES[2]}


def test_a_fifth_of_fallbacks_is_still_the_policys_run():
    run, _ = policy_run(Says(clients=Clients.ALL), rounds=6)
    fallen = policy_run(Nan(), rounds=3)[0].decisions[1:]
    assert conduct("policy", run.decisions, 0.2).kind == "policy"
    assert conduct("policy", [*run.decisions[:5], fallen[0]], 0.2).kind == "policy"  # 1 of 5
    assert conduct("policy", [*run.decisions[:5], *fallen], 0.2).kind == "rule"  # 2 of 6
    assert conduct("llm-qfl-all", run.decisions, 0.2).kind == "llm-qfl-all"
    assert conduct("policy", [], 0.2).kind == "rule"


def test_rewards_arrive_when_their_loss_is_known():
    run = decider("llm-qfl-all", setting={"rounds": 10})
    assert run.close(answer(run.decide(1, SITES), LOSSES, server=0.6)) is None
    reward = run.close(answer(run.decide(2, SITES), LOSSES, server=0.45))
    assert reward == pytest.approx(0.25 - 0.1)  # a quarter of the loss; one of ten rounds' cost
    assert run.reward_round == 2
    late = decider("llm-qfl-all", setting={"rounds": 10, "lag": 1})
    late.close(answer(late.decide(1, SITES), LOSSES, server=0.6))
    assert late.reward_round is None
    assert late.close(answer(late.decide(2, SITES), LOSSES, server=0.45)) == pytest.approx(0.15)
    assert late.reward_round == 1  # federated validation scores what was sent


def test_a_line_says_all_of_it():
    scorer = Says(budget=Budget.STEPS_2, clients=Clients.TWO)
    _, plan = policy_run(scorer)
    line = json.loads(json.dumps(decision_line(plan, reward=0.1, reward_round=2), allow_nan=False))
    assert line["round"] == 3
    assert line["by"] == "policy"
    assert line["action"]["budget"] == "2"
    assert sum(line["probabilities"]["budget"].values()) == pytest.approx(1)
    assert line["probabilities"]["stop"]["yes"] == 0
    assert line["plan"]["budgets"] == {site: 21 for site in plan.sites}  # noqa: C420
    assert set(line["rule"]["sites"]) == set(plan.rule.sites)
    assert all(one["why"] for one in line["regulated"].values())
    assert line["regulated"]
    assert (line["reward"], line["reward_of_round"]) == (0.1, 2)
    assert line["milliseconds"] >= 0
    assert line["state_hash"] == plan.state.digest()


@pytest.mark.parametrize(
    ("mode", "rate", "lag"),
    [("llm-qfl-selected", 0.0, 0), ("policy", 0.0, 0), ("policy", 0.8, 0), ("policy", 0.8, 1)],
)
def test_b21_a_run_that_was_killed_decides_as_it_would_have(mode, rate, lag):
    server = [0.6, 0.55, 0.53, 0.47, 0.46, 0.40, 0.39, 0.37]

    def scorer():
        return Says(0.9 if rate == 0 else 0.3, budget=Budget.MORE, clients=Clients.THREE, select=Select.OORT)

    def go_on(run, first, last):
        plans = []
        for number in range(first, last):
            plan = run.decide(number, SITES)
            run.close(answer(plan, [loss + 0.01 * number for loss in LOSSES], server=server[number - 1]))
            tilted = {name: value.tolist() for name, value in plan.probabilities.items()}
            plans.append((plan.by, plan.sites, plan.budgets, tilted))
        return plans

    options = {"select": "oort", "fairness_window": 4, "fraction": 0.5, "online_rate": rate}
    options |= {"max_entropy": 1.0, "min_probability": 0.0}
    setting = {"lag": lag}
    undisturbed = decider(mode, scorer(), setting, **options)
    whole = go_on(undisturbed, 1, 9)
    killed = decider(mode, scorer(), setting, **options)
    before = go_on(killed, 1, 5)
    written = json.dumps(killed.memory.to_json(), allow_nan=False)
    lines = [json.loads(json.dumps(decision_line(one))) for one in killed.decisions]
    assert len(killed.memory.online.asked) == (lag if rate else 0)  # with a lag, a decision still waits for its reward
    again = decider(mode, scorer(), setting, **options)
    again.remember(Memory.from_json(json.loads(written)), lines)
    assert before + go_on(again, 5, 9) == whole
    said = [tilted["budget"] for _, _, _, tilted in whole if tilted]
    assert (len({tuple(one) for one in said}) > 1) == (rate > 0)  # the bandit did something, and only where it may
    assert again.fired == undisturbed.fired
    assert again.decisions[0].regulated == undisturbed.decisions[4].regulated
    first, second = (
        conduct(mode, run.decisions, 0.2, run.past).as_json() | {"milliseconds": 0} for run in (undisturbed, again)
    )
    assert first == second


def test_the_language_models_losses_are_remembered():
    run = decider("llm-qfl-all")
    run.teachers = Teachers({"a": 0.25}, 0.5)
    again = decider("llm-qfl-all")
    again.remember(Memory.from_json(json.loads(json.dumps(run.memory.to_json()))))
    assert again.teachers == run.teachers


@pytest.mark.parametrize("data", [{}, {"rounds": [{}], "budgets": {}, "proposed": {}}, {"rounds": 3}])
def test_a_damaged_memory_is_refused(data):
    with pytest.raises(FederationError, match="start the run anew"):
        Memory.from_json(data)


def test_a_line_gives_its_mask_back():
    scorer = Says(budget=Budget.STEPS_2, clients=Clients.TWO)
    _, plan = policy_run(scorer)
    assert allowed_of(decision_line(plan)["masked"]) == scorer.asked[-1][1]


def test_a_cell_whose_language_model_is_worse_is_inert():
    def played(language):
        run = decider("llm-qfl-all")
        for number in range(1, 5):
            run.close(answer(run.decide(number, SITES), LOSSES, language=language))
        return run.fired

    worse, better = played(1.5), played(0.4)
    assert (worse.grew, worse.inert) == (0, True)
    assert worse.shrank > 0  # it saved what any small fixed budget saves
    assert (better.grew, better.inert, better.rounds) == (1.0, False, 4)


def test_every_rule_is_held_against_the_losses_as_they_were():
    run = decider("llm-qfl-all")
    for number in range(1, 6):
        plan = run.decide(number, SITES)
        run.close(answer(plan, LOSSES, language=0.4 if number < 3 else 1.0, server=0.5))
    shares = run.fired_by_rule
    assert list(shares) == ["incremental", "dynamic", "logarithmic", "adaptive", "hybrid"]
    assert shares["adaptive"] == run.fired  # what it did, for nothing came between
    assert all(share.rounds == 5 and share.grew == pytest.approx(2 / 5) for share in shares.values())
    idle = decider("llm-qfl-all")
    assert idle.fired_by_rule["adaptive"].rounds == 0


def test_a_best_loss_that_stale_losses_made_counts_until_all_sites_have_answered():
    run = decider(scorer=Says(), setting={"lag": 1}, regress_rounds=2, stop_tolerance=0.02)

    def close(number, losses):
        run.decide(number, SITES[:2])
        sites = tuple(
            SiteRecord(one, 100, loss, 0.4, received_loss=loss, validation_rows=10) for one, loss in losses.items()
        )
        run.close(RoundRecord(number, sites, tuple(losses), server_loss=sum(losses.values()) / len(losses)))

    both = dict.fromkeys(SITES[:2], 0.6)
    close(1, both)
    close(2, {SITES[0]: 0.0})  # .3 in the mean, with a loss of the other that is of round 1
    close(3, {SITES[1]: 0.9})
    close(4, {SITES[1]: 0.9})
    assert run.history.comparable() == pytest.approx((0.6, 0.3, 0.45, 0.45))
    assert run.decide(5, SITES[:2]).fallback.reason == "regression"
    close(5, dict.fromkeys(SITES[:2], 0.5))  # the rule asks all: what is, is better than at the start
    assert run.history.comparable() == pytest.approx((0.6, 0.5))
    assert run.decide(6, SITES[:2]).by == "policy"
    close(6, dict.fromkeys(SITES[:2], 0.7))
    close(7, dict.fromkeys(SITES[:2], 0.7))
    assert run.decide(8, SITES[:2]).fallback.reason == "regression"  # seen on all rows, it is one


def test_sites_that_are_hard_to_fit_are_no_regression():
    run = decider(scorer=Says(), setting={"lag": 1}, regress_rounds=2, stop_tolerance=0.02)
    losses = {"site-0000": 0.2, "site-0001": 0.8}  # each the same from round to round
    for number, who in enumerate([SITES[:2], SITES[:1], SITES[1:2], SITES[1:2]], 1):
        run.decide(number, SITES[:2])
        sites = tuple(
            SiteRecord(one, 100, losses[one], 0.4, received_loss=losses[one], validation_rows=10) for one in who
        )
        reward = run.close(
            RoundRecord(number, sites, tuple(who), server_loss=sum(losses[one] for one in who) / len(who))
        )
        assert reward in (None, pytest.approx(-0.05))  # nothing won; one of twenty rounds' cost
    assert run.decide(5, SITES[:2]).by == "policy"


def test_behind_the_policy_the_rule_takes_all_sites_but_in_a_first_round_at_random():
    assert policy_run(Nan())[0].decisions[0].sites == tuple(SITES)
    run = decider(scorer=Nan(), select="random", fraction=0.5)
    first = run.decide(1, SITES)
    assert (len(first.sites), first.select) == (3, "random")
    run.close(answer(first, LOSSES))
    second = run.decide(2, SITES)
    assert (second.sites, second.select, second.fallback.reason) == (tuple(SITES), "all", "not finite")


def test_what_a_mask_does_to_a_blind_policy_is_no_information():
    def line(masked):
        left = [option.value for option in Clients if f"clients {option.value}" not in masked]
        even = {name: {option.value: 1 / len(kind) for option in kind} for name, kind in FIELDS.items()}
        even["clients"] = {option.value: (option.value in left) / len(left) for option in Clients}
        return {"fallback": None, "by": "policy", "milliseconds": 1.0, "masked": masked, "probabilities": even}

    lines = [line({}), line({"clients 10": "4 sites are there", "clients 7": "4 sites are there"})] * 2
    assert conduct("policy", [], 0.2, lines).information == pytest.approx(dict.fromkeys(FIELDS, 0.0))
    other = line({})
    other["probabilities"]["clients"] = {option.value: float(option is Clients.TWO) for option in Clients}
    assert conduct("policy", [], 0.2, [*lines, other]).information["clients"] > 0.1
