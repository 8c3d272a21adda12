"""Validation and test: on the server's own rows, or from the sites' sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_qfl.baselines import Baseline
from llm_qfl.federation.types import GlobalState, Rows, Scores
from llm_qfl.quantum.model import QNNModel


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

    def scores(self, state: GlobalState) -> tuple[Scores, dict[str, Scores]]:
        """Sums for the QNN and each baseline."""
        qnn = self.model.scores(state.theta, self.rows)
        return qnn, {n: b.scores(state.baselines[n], self.rows) for n, b in self.baselines.items()}
