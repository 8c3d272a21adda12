"""One local round as a function: received state -> report. No Flower here, no files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llm_qfl.baselines import Baseline
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.records import Evaluation
from llm_qfl.federation.seeding import stream
from llm_qfl.federation.types import Array, ClientReport, GlobalState, Partition, RoundPlan, Rows, Scores, Spent
from llm_qfl.quantum.distillation import Distillation
from llm_qfl.quantum.model import QNNModel
from llm_qfl.quantum.scope import Scope
from llm_qfl.quantum.training import train


@dataclass(frozen=True, eq=False)
class SiteQNN:
    """The QNN at one site.

    Attributes:
        model: on the backend that trains.
        scorer: on the backend that scores validation and test rows.
        scope: for which run, site and round; the purpose is added here.
    """

    model: QNNModel
    scorer: QNNModel
    scope: Scope = field(default_factory=Scope)

    @classmethod
    def of(cls, model: QNNModel) -> SiteQNN:
        """One model for both, in no run's scope."""
        return cls(model, model)

    def close(self) -> None:
        """The task is done."""
        for model in (self.model, self.scorer):
            model.close()

    def scores(self, theta: Array, rows: Rows, purpose: str) -> tuple[Scores, Spent]:
        """Sums over rows, and what their circuits cost beside the count of circuits."""
        scorer = self.scorer.at(replace(self.scope, purpose=purpose))
        scores = scorer.scores(theta, rows)
        return scores, scorer.spent + Spent(validation_circuits=len(rows))


def local_round(
    state: GlobalState,
    plan: RoundPlan,
    partition: Partition,
    qnn: SiteQNN,
    baselines: Mapping[str, Baseline],
    config: RunConfig,
    soft: Array | None = None,
) -> ClientReport:
    """Train from the received vector and score both it and the trained one on the site's validation rows.

    Baselines take the same rows, the same number of steps and batches; they count in no budget. `soft` are the site's
    soft labels of its training rows (N, C); without them, or where the plan gives them no weight, none are used.
    """
    started = time.monotonic()
    seed, site, number = config.server.seed, partition.site, plan.server_round
    rng = stream(seed, site, number, "qnn")
    model = qnn.model.at(replace(qnn.scope, purpose="train"))
    weight = plan.distill_weight if soft is not None else 0.0
    result = train(
        model,
        replace(partition.train, soft=soft) if weight else partition.train,
        state.theta,
        config=config.training,
        budget=plan.budget,
        learning_rate=plan.learning_rate,
        rng=rng,
        distillation=Distillation(weight, config.agent.distill_temperature, config.agent.distill_direction),
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
    received, received_spent = qnn.scores(state.theta, partition.validation, "received")
    trained, trained_spent = qnn.scores(result.theta, partition.validation, "trained")
    return ClientReport(
        site=site,
        server_round=number,
        theta=result.theta,
        num_examples=len(partition.train),
        received=received,
        trained=trained,
        train_loss_first=result.first_loss,
        train_loss_best=result.best_loss,
        spent=result.spent + model.spent + received_spent + trained_spent,
        seconds=time.monotonic() - started,
        baselines=trained_baselines,
        baseline_received=received_baselines,
        backend=model.backend,
        distill_weight=weight,
    )


def local_evaluation(
    state: GlobalState, partition: Partition, qnn: SiteQNN, baselines: Mapping[str, Baseline]
) -> Evaluation:
    """Scores of a state on the site's validation and test rows."""
    parts = {"validation": partition.validation, "test": partition.test}
    scores = {part: qnn.scores(state.theta, rows, f"final-{part}") for part, rows in parts.items()}
    return Evaluation(
        partition.site,
        {part: found for part, (found, _) in scores.items()},
        {
            name: {part: baseline.scores(state.baselines[name], rows) for part, rows in parts.items()}
            for name, baseline in baselines.items()
        },
        scores["validation"][1] + scores["test"][1],
        qnn.scorer.backend,
    )
