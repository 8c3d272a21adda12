"""`python -m benchmarks.decision [--policy FILE] [--model NAME]`: one decision of the policy, milliseconds.

A decision is what `agent.decision-timeout` bounds: state to text, one pass of the language model, shield. Loading the
model is told apart. States of 10 sites, the longest there are; every one is new, so nothing is remembered.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from agent.actions import SIZES
from agent.budgets import StepCost
from agent.choice import Scorer
from agent.decider import Decider
from agent.history import RoundRecord, SiteRecord
from agent.means import Means
from agent.state import Setting
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.settings import default_folder

LIMIT_MS = 1000.0
SITES = tuple(f"site-{n:04d}" for n in range(10))


def load(policy: Path | None, model: str) -> Scorer:
    """The policy of a file, or an untrained one on a base model: equally long a pass."""
    from llm_qfl.language.models import load_base
    from llm_qfl.language.policy import PolicyModel
    from llm_qfl.language.policy_file import read_policy

    models = default_folder() / "models"
    if policy is not None:
        file = read_policy(policy, SIZES)
        return file.load(load_base(file.base_name, models))
    return PolicyModel.on(load_base(model, models), SIZES)


def decisions(scorer: Scorer, count: int) -> list[float]:
    """Milliseconds of so many decisions of a run, the first, which has no history, left out."""
    agent = AgentConfig(mode="policy", decision_timeout=600.0, max_entropy=1.0, min_probability=0.0, stop_plateau=0.0)
    setting = Setting(rounds=count + 2, classes=2, cost=StepCost(25, 1, 26), round_circuits=10_000, round_bytes=4_000)
    decider = Decider(agent, setting, Means(seed=1, first_budget=51, shots=1024, teaches=True, scorer=scorer))
    random, found = np.random.default_rng(0), []
    for number in range(1, count + 2):
        decision = decider.decide(number, SITES)
        if decision.by == "policy":
            found.append(decision.milliseconds)
        sites = tuple(
            SiteRecord(site, 50 + 10 * n, float(random.uniform(0.2, 0.7)), float(random.uniform(0.2, 0.7)))
            for n, site in enumerate(SITES)
        )
        decider.close(RoundRecord(number, sites, decision.sites, server_loss=0.7 - 0.3 * number / count))
    return found


def main() -> None:
    """Load, decide, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--decisions", type=int, default=10)
    asked = parser.parse_args()
    started = time.perf_counter()
    scorer = load(asked.policy, asked.model)
    loading, cpu = time.perf_counter() - started, time.process_time()
    found = decisions(scorer, asked.decisions)
    seconds = (time.process_time() - cpu) / max(len(found), 1)
    middle, worst = float(np.median(found)), max(found)
    print(f"loading the model: {loading:.1f} s")
    print(
        f"a decision, 10 sites: median {middle:.0f} ms, longest {worst:.0f} ms over {len(found)}; "
        f"{1000 * seconds:.0f} ms of processor time"
    )
    print(f"median / limit of {LIMIT_MS:.0f} ms: {middle / LIMIT_MS:.2f}")
    if middle > LIMIT_MS:
        raise SystemExit("slower than its limit")


if __name__ == "__main__":
    main()
