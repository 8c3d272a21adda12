"""A decision that was made before a server died stands, whatever the clock says now."""

import time

import numpy as np
import pytest

from agent.actions import SIZES
from agent.budgets import StepCost
from agent.decider import Decider
from agent.history import RoundRecord, SiteRecord
from agent.means import Means
from agent.prices import Prices
from agent.state import Setting
from llm_qfl.federation.config_agent import AgentConfig

COST = StepCost(10, 1, 11)
SITES = ("one", "two")


class Slow:
    """A sure policy that takes its time."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, 0

    def probabilities(self, text, allowed):
        self.asked += 1
        time.sleep(self.seconds)
        found = {}
        for name in SIZES:
            weights = np.array(allowed[name], float)
            weights[int(weights.argmax())] += 9.0 * weights.sum()
            found[name] = weights / weights.sum()
        return found


def second_round(scorer, timed_out=None, timeout=0.05):
    agent = AgentConfig(mode="policy", decision_timeout=timeout, stop_plateau=0.0, stop_align=0.0)
    setting = Setting(rounds=9, classes=2, cost=COST, prices=Prices(0.0, 1.0, 0.0))
    run = Decider(agent, setting, Means(seed=1, first_budget=51, shots=8, scorer=scorer))
    first = run.decide(1, SITES)
    sites = tuple(SiteRecord(site, 10, 0.5, 0.4) for site in first.sites)
    run.close(RoundRecord(1, sites, first.sites, server_loss=0.5))
    if timed_out is not None:
        run.asking.replay(2, timed_out)
    return run.decide(2, SITES)


@pytest.mark.parametrize(("seconds", "timeout", "by"), [(0.0, 20.0, "policy"), (0.4, 0.05, "rule")])
def test_without_a_record_the_clock_decides(seconds, timeout, by):
    assert second_round(Slow(seconds), timeout=timeout).by == by


def test_what_was_too_late_stays_too_late():
    scorer = Slow(0.0)
    decision = second_round(scorer, "no decision within 0.05 s")
    assert decision.by == "rule"
    assert (decision.fallback.reason, decision.fallback.why) == ("timeout", "no decision within 0.05 s")
    assert scorer.asked == 0


def test_what_was_in_time_stays_in_time():
    decision = second_round(Slow(0.4), "")
    assert decision.by == "policy"
    assert decision.fallback is None
