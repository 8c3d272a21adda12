"""The mark for a federation: the same QNN trained on all sites' training rows in one place, with as many circuits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client_app.data import site_partition
from llm_qfl.federation.seeding import SERVER, stream
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.types import Partition, Rows, Scores
from llm_qfl.quantum.training import train
from server_app.rows import server_rows
from server_app.session import Finished, initial_state


@dataclass(frozen=True, eq=False)
class Central:
    """Scores and cost of central training."""

    test: Scores
    circuits: int


def pooled_training_rows(finished: Finished) -> Rows:
    """Every simulated site's training rows, as the run's features."""
    parts = _partitions(finished)
    return Rows(np.concatenate([p.train.x for p in parts]), np.concatenate([p.train.y for p in parts]))


def train_centrally(finished: Finished) -> Central:
    """Train from the run's first vector, one optimizer all the way, until the run's circuits are spent.

    Minibatches are scaled so that a step sees as many rows as all sites' batches together do in the federation.
    """
    opened = finished.opened
    config = opened.config
    spent = sum(report.spent.circuits for closed in finished.rounds for report in closed.reports)
    rows = pooled_training_rows(finished)
    batch = min(config.training.batch_size * len(opened.roll.nodes), len(rows)) if config.training.batch_size else 0
    training = config.training.model_copy(update={"batch_size": 0 if batch == len(rows) else batch})
    per_evaluation = batch or len(rows)
    seed = config.server.seed
    result = train(
        opened.model,
        rows,
        initial_state(opened).theta,
        config=training,
        budget=spent // per_evaluation,
        learning_rate=config.training.learning_rate,
        rng=stream(seed, SERVER, 0, "central"),
    )
    test = server_rows(config, opened.setup, "test")
    if test is None:
        raise ValueError("central training is scored on the server's test rows; set data.test to server or file:")
    return Central(opened.model.scores(result.theta, test), result.spent.circuits)


def _partitions(finished: Finished) -> list[Partition]:
    opened = finished.opened
    names, digest = sorted(opened.roll.nodes), opened.setup.digest()
    settings = [
        NodeSettings.from_node_config({"partition-id": n, "num-partitions": len(names)}) for n in range(len(names))
    ]
    return [site_partition(opened.config, s, s.site, opened.setup, digest) for s in settings]
