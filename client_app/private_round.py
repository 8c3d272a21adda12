"""One local round that gives away no more than was agreed: received state -> report. No Flower here, no files.

`record`: DP-SGD, the last iterate. `client-local`: the update is clipped and gets the site's noise. `client-central`:
the server clips and adds noise. In all of them no loss, no score and no baseline is told.
"""

from __future__ import annotations

import time
from dataclasses import replace

from client_app.privacy import Guard
from client_app.round import SiteQNN
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.errors import PrivacyError
from llm_qfl.federation.robust import scale_down
from llm_qfl.federation.seeding import stream
from llm_qfl.federation.types import Array, ClientReport, GlobalState, Partition, RoundPlan, Scores, Spent
from llm_qfl.quantum.model import QNNModel
from llm_qfl.quantum.private import RowPrivacy, train_privately
from llm_qfl.quantum.training import train


def planned_steps(model: QNNModel, plan: RoundPlan) -> int:
    """Adam steps that a plan's budget pays for; one evaluation is left, for a loss that is not told."""
    return (plan.budget - 1) // model.gradient_cost


def private_round(
    state: GlobalState, plan: RoundPlan, partition: Partition, qnn: SiteQNN, config: RunConfig, guard: Guard | None
) -> ClientReport:
    """Train from the received vector and tell nothing that is not covered.

    Args:
        state: the received state.
        plan: of the round.
        partition: the site's rows; those for validation are not looked at.
        qnn: the model.
        config: the run config.
        guard: hides the rows, or the site; None only where the server adds the noise.

    Raises:
        PrivacyError: no guard where the site must hide something.
    """
    started = time.monotonic()
    model = qnn.model.at(replace(qnn.scope, purpose="train"))
    if guard is None and config.privacy.unit != "client-central":
        raise PrivacyError(f"privacy.unit={config.privacy.unit} needs the site's secret, the round was given none")
    if config.privacy.unit == "record" and guard is not None:
        theta, spent = _hide_rows(state.theta, plan, partition, model, config, guard)
    else:
        theta, spent = _hide_site(state.theta, plan, partition, model, config, guard)
    nothing = Scores.none(model.classes)
    return ClientReport(
        site=partition.site,
        server_round=plan.server_round,
        theta=theta,
        num_examples=len(partition.train),
        received=nothing,
        trained=nothing,
        train_loss_first=None,
        train_loss_best=None,
        spent=spent + model.spent,
        seconds=time.monotonic() - started,
        backend=model.backend,
        epsilon=None if guard is None else guard.epsilon,
    )


def _hide_rows(
    theta: Array, plan: RoundPlan, partition: Partition, model: QNNModel, config: RunConfig, guard: Guard
) -> tuple[Array, Spent]:
    result = train_privately(
        model,
        partition.train,
        theta,
        steps=planned_steps(model, plan),
        learning_rate=plan.learning_rate,
        l2=config.training.l2,
        privacy=RowPrivacy(config.privacy.clip, guard.release.noise, guard.release.rate),
        noise=guard.noise,
    )
    return result.theta, result.spent


def _hide_site(
    theta: Array, plan: RoundPlan, partition: Partition, model: QNNModel, config: RunConfig, guard: Guard | None
) -> tuple[Array, Spent]:
    result = train(
        model,
        partition.train,
        theta,
        config=config.training,
        budget=plan.budget,
        learning_rate=plan.learning_rate,
        rng=stream(config.server.seed, partition.site, plan.server_round, "qnn"),
    )
    if guard is None:
        return result.theta, result.spent
    clip = config.privacy.clip
    update, _ = scale_down(result.theta - theta, clip)
    return theta + update + guard.noise.gaussian(len(theta), guard.release.noise * clip), result.spent
