"""One local round as a function: received state -> report. No Flower here, no files."""

from __future__ import annotations

import time
from collections.abc import Mapping

from llm_qfl.baselines import Baseline
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.records import Evaluation
from llm_qfl.federation.seeding import stream
from llm_qfl.federation.types import ClientReport, GlobalState, Partition, RoundPlan, Spent
from llm_qfl.quantum.model import QNNModel
from llm_qfl.quantum.training import train


def local_round(
    state: GlobalState,
    plan: RoundPlan,
    partition: Partition,
    model: QNNModel,
    baselines: Mapping[str, Baseline],
    config: RunConfig,
) -> ClientReport:
    """Train from the received vector and score both it and the trained one on the site's validation rows.

    Baselines take the same rows, the same number of steps and batches; they count in no budget.
    """
    started = time.monotonic()
    seed, site, number = config.server.seed, partition.site, plan.server_round
    rng = stream(seed, site, number, "qnn")
    result = train(
        model,
        partition.train,
        state.theta,
        config=config.training,
        budget=plan.budget,
        learning_rate=plan.learning_rate,
        rng=rng,
    )
    trained_baselines, received_baselines = {}, {}
    ratio = plan.learning_rate / config.training.learning_rate  # the schedule is one for all
    for name, baseline in baselines.items():
        received_baselines[name] = baseline.scores(state.baselines[name], partition.validation)
        trained_baselines[name] = baseline.train(
            state.baselines[name],
            partition.train,
            steps=config.training.steps,
            learning_rate=config.baselines.learning_rate * ratio,
            l2=config.training.l2,
            batch_size=config.training.batch_size,
            rng=stream(seed, site, number, f"baseline/{name}"),
        )
    validation = Spent(validation_circuits=2 * len(partition.validation))
    return ClientReport(
        site=site,
        server_round=number,
        theta=result.theta,
        num_examples=len(partition.train),
        received=model.scores(state.theta, partition.validation),
        trained=model.scores(result.theta, partition.validation),
        train_loss_first=result.first_loss,
        train_loss_best=result.best_loss,
        spent=result.spent + validation,
        seconds=time.monotonic() - started,
        baselines=trained_baselines,
        baseline_received=received_baselines,
    )


def local_evaluation(
    state: GlobalState, partition: Partition, model: QNNModel, baselines: Mapping[str, Baseline]
) -> Evaluation:
    """Scores of a state on the site's validation and test rows."""
    parts = {"validation": partition.validation, "test": partition.test}
    return Evaluation(
        partition.site,
        {part: model.scores(state.theta, rows) for part, rows in parts.items()},
        {
            name: {part: baseline.scores(state.baselines[name], rows) for part, rows in parts.items()}
            for name, baseline in baselines.items()
        },
    )
