"""The QNN on language features: hidden states of what a client holds, discriminant directions, the federation as it is.

Each site's states are written to a CSV file of its own and the usual in-memory federation runs on these files: feature
map from federated sums. QNN and logistic regression have rounds and steps of their own (20 of 20), 90 % of a site's
rows (the rest validate) and a loss that is not balanced; beside them stands balanced logistic regression on all rows
in one place.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.tweets_data import WORDS, deal, questions
from llm_qfl.federation.data.features import fit_feature_map
from llm_qfl.federation.data.sums import combine, local_sums
from llm_qfl.federation.types import Array, Labels, Scores

if TYPE_CHECKING:
    from experiments.tweets_run import Job

RUN = {
    "data.encoding": "auto",
    "data.reduction": "discriminant",
    "data.validation-fraction": 0.1,  # of a site's rows; they score and never train
    "quantum.qubits": 4,
    "quantum.layers": 3,
    "server.rounds": 20,
    "training.steps": 20,
    "training.batch-size": 100,
    "language.model": "none",
}
LAYER = 15
"""Of the full model (reference, 8.2); of a compressed one the layer at the same place among those it holds."""


def score_features(job: Job) -> dict[str, Any]:
    """Scores of the QNN and of logistic regression on the test rows."""
    from experiments.tweets_run import prepare
    from llm_qfl.language.features import RouteStates, pooled_states

    _, loss = prepare(job)
    server, tweets = job.server, job.tweets
    with server.distributed() as route:
        model = RouteStates(route)
        layer = sum(number <= LAYER - 1 for number in (*route.prefix, *route.suffix))
        states = [
            pooled_states(
                model, questions(texts, job.words, job.tokenizer).alone(), layer, folder=job.work / "features"
            )
            for texts in (tweets.texts, tweets.test)
        ]
    found = _federated(job, *states)
    found["logistic-central"] = central_logistic(states[0], tweets.labels, states[1], tweets.test_labels)
    return {"boundary_loss": loss, "layer": layer, **found}


def central_logistic(train: Array, labels: Labels, test: Array, test_labels: Labels) -> dict[str, float]:
    """Balanced logistic regression on the discriminant directions, all rows in one place: the map that a run fits."""
    from sklearn.linear_model import LogisticRegression

    names = [str(number) for number in range(len(WORDS))]
    sums = local_sums(train, labels, classes=names, reduction="discriminant", min_rows=2)
    features = fit_feature_map(combine([("all", sums)]), reduction="discriminant", qubits=len(WORDS) - 1)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(features.transform(train), labels)
    return _metrics(Scores.of(model.predict_log_proba(features.transform(test)), test_labels))


def _federated(job: Job, train: Array, test: Array) -> dict[str, Any]:
    from simulation.run import run_federation

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "test.csv", test, job.tweets.test_labels)
        nodes = []
        for site, part in enumerate(deal(job.tweets.labels, job.seed, "dirichlet")):
            path = folder / f"site-{site}.csv"
            _write(path, train[part], job.tweets.labels[part])
            nodes.append({"site": f"site-{site}", "data-path": str(path), "folder": str(folder / f"node-{site}")})
        config = {**RUN, "data.test": f"file:{folder / 'test.csv'}", "server.seed": job.seed}
        summary = run_federation(config, nodes=nodes).summary
    both = {"qnn": summary, "logistic": summary["baselines"]["logistic"]}
    return {
        kind: {
            "accuracy": float(found["test_accuracy"]),
            "recall": float(found["test_balanced_accuracy"]),
            "nll": float(found["test_loss"]),
        }
        for kind, found in both.items()
    }


def _write(path: Path, states: Array, labels: Labels) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"h{i}" for i in range(states.shape[1])), "label"])
        writer.writerows([*map(repr, row), WORDS[y]] for row, y in zip(states.tolist(), labels, strict=True))


def _metrics(scores: Scores) -> dict[str, float]:
    found = {"accuracy": scores.accuracy, "recall": scores.balanced_accuracy, "nll": scores.loss}
    return {key: float(np.nan if value is None else value) for key, value in found.items()}
