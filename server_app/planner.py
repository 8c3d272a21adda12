"""What the next round shall do. The fixed plan: every round alike, sites by a seeded draw.

This is the only place where a round is decided. Every mode but `qfl` asks a `Decider`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.decider import Decider
from llm_qfl.federation.config import RunConfig, TrainingConfig
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.federation.types import RoundPlan


def plan_round(config: RunConfig, server_round: int, sites: Sequence[str], budget: int) -> RoundPlan:
    """The plan of one round.

    Args:
        config: the run config.
        server_round: from 1.
        sites: sites that are there, in any order.
        budget: objective evaluations of a site's optimizer.
    """
    chosen = sample_sites(config, server_round, sites)
    rate = learning_rate(config.training, server_round, config.server.rounds)
    return RoundPlan(server_round, chosen, budget, rate, config.quantum.shots)


def decided_round(config: RunConfig, decider: Decider, server_round: int, sites: Sequence[str]) -> RoundPlan:
    """The plan of one round as a rule or the policy decides it; without sites where the run stops.

    Args:
        config: the run config.
        decider: of the run; `decider.decisions[-1]` says who decided and why.
        server_round: from 1.
        sites: sites that are there and free, in any order.
    """
    decision = decider.decide(server_round, sites)
    chosen = tuple(sorted(decision.sites))
    budgets = tuple(decision.budgets[site] for site in chosen)
    rate = learning_rate(config.training, server_round, config.server.rounds)
    return RoundPlan(server_round, chosen, max(budgets, default=0), rate, decision.shots, budgets, decision.weight)


def sample_sites(config: RunConfig, server_round: int, sites: Sequence[str]) -> tuple[str, ...]:
    """A seeded draw of `server.fraction` of the sites, at least two where there are two; sorted by name."""
    ordered = sorted(sites)
    count = max(min(2, len(ordered)), round(config.server.fraction * len(ordered)))
    if count >= len(ordered):
        return tuple(ordered)
    rng = stream(config.server.seed, SERVER, server_round, "sample-sites")
    return tuple(sorted(rng.choice(ordered, size=count, replace=False).tolist()))


def learning_rate(training: TrainingConfig, server_round: int, rounds: int) -> float:
    """Step size of a round: constant, or a cosine from the first round's full rate towards a tenth in the last."""
    if training.schedule == "constant" or rounds == 1:
        return training.learning_rate
    progress = (server_round - 1) / (rounds - 1)
    return training.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
