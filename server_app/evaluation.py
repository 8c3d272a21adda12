"""Validation and test: on the server's own rows, or from the sites' sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from flwr.app import Message

from llm_qfl.baselines import Baseline
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records import Evaluation, content_bytes, decode_evaluation
from llm_qfl.federation.types import GlobalState, Rows, Scores
from llm_qfl.quantum.model import QNNModel
from llm_qfl.quantum.scope import Meter, Scope


def pool(scores: Sequence[Scores]) -> Scores | None:
    """Sum over sites, in the order given; None where nobody has a row."""
    if not scores:
        return None
    total = scores[0]
    for one in scores[1:]:
        total = total + one
    return total if total.count else None


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores a state on rows that the server holds."""

    model: QNNModel
    baselines: Mapping[str, Baseline]
    rows: Rows
    scope: Scope
    meter: Meter = field(default_factory=Meter)
    """What scoring has cost on a backend that samples."""

    def scores(self, state: GlobalState) -> tuple[Scores, dict[str, Scores]]:
        """Sums for the QNN and each baseline."""
        model = self.model.at(replace(self.scope, server_round=state.server_round))
        with closing(model):
            qnn = model.scores(state.theta, self.rows)
        self.meter.spent = self.meter.spent + model.spent
        return qnn, {n: b.scores(state.baselines[n], self.rows) for n, b in self.baselines.items()}


def read_evaluations(
    replies: Iterable[Message],
    sites: Mapping[int, str],
    baselines: tuple[str, ...],
    classes: int,
    language_classes: int = 0,
) -> tuple[dict[str, Evaluation], dict[str, str], int]:
    """The sites' scores of the final model.

    Args:
        replies: of the last exchange.
        sites: node id -> site.
        baselines: names of the baselines.
        classes: number of classes.
        language_classes: length of the language model's counts.

    Returns:
        Site -> scores; site -> why its reply cannot count; bytes of those that count.
    """
    found: dict[str, Evaluation] = {}
    failures: dict[str, str] = {}
    up = 0
    for reply in replies:
        site = sites.get(reply.metadata.src_node_id)
        if site is None or reply.has_error():
            continue
        try:
            found[site] = decode_evaluation(
                reply.content, site=site, baselines=baselines, classes=classes, language_classes=language_classes
            )
            up += content_bytes(reply.content)
        except RecordError as error:
            failures[site] = f"{type(error).__name__}: {error}"
    return found, failures, up
