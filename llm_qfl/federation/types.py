"""What one round passes on, as frozen dataclasses; arrays in them are never written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.intp]
Arrays = Mapping[str, Array]

EMPTY: Mapping[str, Arrays] = {}


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one part of the split: features (N, D) float64 and labels (N,)."""

    x: Array
    y: Labels
    soft: Array | None = None
    """A teacher's probabilities (N, C) of these rows, where there is one."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: Labels) -> Rows:
        """Some of the rows, in the order asked for."""
        return Rows(self.x[chosen], self.y[chosen], None if self.soft is None else self.soft[chosen])


@dataclass(frozen=True, eq=False)
class Partition:
    """One site's rows, by the one split table. The parts are disjoint; validation and test may be empty."""

    site: str
    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True, eq=False)
class Scores:
    """Sums over rows, so that sites can be added: loss in nats (sum), rows and correct answers by class (C,)."""

    loss_sum: float
    rows: Labels
    correct: Labels

    @classmethod
    def none(cls, classes: int) -> Scores:
        """Of no rows."""
        return cls(0.0, np.zeros(classes, np.intp), np.zeros(classes, np.intp))

    @classmethod
    def of(cls, log_probabilities: Array, y: Labels) -> Scores:
        """Sums from log-probabilities (N, C), nats, and labels (N,)."""
        classes = log_probabilities.shape[1]
        right = y[np.argmax(log_probabilities, axis=1) == y]
        loss = float(-log_probabilities[np.arange(len(y)), y].sum())
        # Rounding may leave a perfect prediction a hair below zero.
        return cls(max(loss, 0.0), np.bincount(y, minlength=classes), np.bincount(right, minlength=classes))

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.rows.sum())

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy in nats; None without rows."""
        return self.loss_sum / self.count if self.count else None

    @property
    def accuracy(self) -> float | None:
        """Share of correct answers; None without rows."""
        return float(self.correct.sum()) / self.count if self.count else None

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean recall over the classes that have rows; None without rows."""
        there = self.rows > 0
        return float(np.mean(self.correct[there] / self.rows[there])) if there.any() else None

    def __add__(self, other: Scores) -> Scores:
        return Scores(self.loss_sum + other.loss_sum, self.rows + other.rows, self.correct + other.correct)


@dataclass(frozen=True, eq=False)
class Spent:
    """What a site's work cost. Validation counts apart; baselines count nowhere."""

    evaluations: int = 0
    """Objective evaluations of training: a loss 1, a gradient 2G+1."""
    circuits: int = 0
    """Evaluations times rows."""
    shots: int = 0
    """Executions on a backend that samples, those of validation and mitigation included."""
    qpu_seconds: float = 0.0
    queue_seconds: float = 0.0
    """Seconds that the site's jobs waited for a QPU."""
    qpu_seconds_estimated: float = 0.0
    """Of the QPU seconds: estimates, where the service has not told its own."""
    jobs: int = 0
    """Jobs on IBM Quantum."""
    validation_circuits: int = 0
    simulated_circuits: int = 0
    """What the simulator really did: forward and adjoint sweeps over rows."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


NOTHING = Spent()


@dataclass(frozen=True)
class RoundPlan:
    """What one round shall do. `budget` is objective evaluations of each site's optimizer."""

    server_round: int
    sites: tuple[str, ...]
    budget: int
    learning_rate: float
    shots: int = 0
    """Of every circuit, at the sites whose backend samples."""
    budgets: tuple[int, ...] = ()
    """Objective evaluations of each of `sites`, where they differ; empty: `budget` for all."""
    distill_weight: float = 0.0
    """Lambda of the soft labels, at the sites that have them."""

    def budget_of(self, site: str) -> int:
        """Objective evaluations of one site's optimizer."""
        return self.budgets[self.sites.index(site)] if self.budgets else self.budget


@dataclass(frozen=True, eq=False)
class GlobalState:
    """The global model: theta (P,), its parameter names, and the baselines' arrays by name."""

    server_round: int
    theta: Array
    parameter_names: tuple[str, ...]
    baselines: Mapping[str, Arrays] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LanguageAnswer:
    """A site's part of a round with the language model: the adapter's matrices, and what training them took.

    For written texts the scores count tokens, as rows of one class.
    """

    arrays: Mapping[str, NDArray[Any]]
    """As they go over the wire."""
    adapter_digest: str
    """Of the adapter that training started from."""
    num_examples: int
    steps: int
    received: Scores
    """The received adapter on the compressed model, on the site's validation rows."""
    trained: Scores
    """The trained one; its mean is L_i."""
    train_loss_first: float | None
    """Mean cross-entropy of the first step's batch, nats per answer token; None where it may not be told."""
    train_loss_last: float | None
    computed: int = 0
    """Rows whose boundary state had to be computed."""
    fill_seconds: float = 0.0
    step_seconds: float = 0.0
    seconds: float = 0.0
    """The site's whole language part: loading and scoring, too."""
    peak_bytes: int = 0
    """Most memory of the process (on CUDA: of the device) in training."""
    peak_exact: bool = True
    """Of this round alone, not of the process's life."""
    frozen_dtype: str = "float32"
    """Numbers that the frozen layers computed in."""
    bytes_up: int = 0


@dataclass(frozen=True, eq=False)
class LanguageRound:
    """What became of the language model in one round."""

    sites: tuple[str, ...]
    """Sites that were given the adapter to train."""
    answers: Mapping[str, LanguageAnswer]
    """Accepted answers, by site."""
    rejected: Mapping[str, str]
    """Site -> why its language part did not count; its QNN part may have."""
    dropped: tuple[str, ...]
    """Sites whose language part came late."""
    aggregated: bool
    """Was the adapter averaged (with `local`: were the sites' own taken over)?"""
    validation: Scores | None
    """The adapter that was sent (federated validation) or the new one (the server's rows), on the compressed model."""
    full_validation: Scores | None
    """The new adapter on the full model, where the server holds validation rows and it was time to score."""
    adapter_digest: str
    emulator_digest: str
    bytes_up: int
    bytes_down: int
    align_seconds: float | None = None
    align_loss: float | None = None
    """Boundary loss of the last alignment step, where this round was followed by alignment."""
    taught: Mapping[str, Scores] = field(default_factory=dict)
    """Sites that scored the adapter without tuning it: they had none of this version."""
    updates: Mapping[str, UpdateStats] = field(default_factory=dict)
    """Site -> what its update of the adapter was like; none where the server hides them."""


@dataclass(frozen=True, eq=False)
class ClientReport:
    """One site's accepted answer to a train task."""

    site: str
    server_round: int
    theta: Array
    num_examples: int
    received: Scores
    """The received vector on the site's validation rows."""
    trained: Scores
    """The returned vector on the same rows; its mean is F_i."""
    train_loss_first: float | None
    """Training loss (nats) at the first evaluated point, which is the received vector; None where it may not be told
    (`privacy.unit`)."""
    train_loss_best: float | None
    """Training loss (nats) at the returned point; None likewise."""
    spent: Spent
    seconds: float
    baselines: Mapping[str, Arrays] = field(default_factory=dict)
    baseline_received: Mapping[str, Scores] = field(default_factory=dict)
    """Received baselines on the site's validation rows."""
    backend: str = "exact"
    """Where the site's circuits ran."""
    bytes_up: int = 0
    distill_weight: float = 0.0
    """Lambda that the site trained with; 0 where it has no soft labels."""
    language: LanguageAnswer | None = None
    language_problem: str = ""
    """Why there is no language part although one was asked for, or why it cannot be read."""
    epsilon: float | None = None
    """What the site's answers in this run have given away so far, at `privacy.delta`, by its own ledger."""
    teacher: Scores | None = None
    """Of the adapter that was sent to be scored, not tuned, on the site's validation rows; its mean is L_i."""


@dataclass(frozen=True)
class UpdateStats:
    """What an update was like, for the report.

    Attributes:
        norm: Euclidean length of the change (of theta, or of the adapter), before any scaling.
        cosine: to the aggregated change; None where one of them is zero.
        factor: by which it was scaled down; 1 where it was not.
        chosen: did it enter the aggregation: false where Krum chose others.
    """

    norm: float
    cosine: float | None
    factor: float = 1.0
    chosen: bool = True


@dataclass(frozen=True, eq=False)
class RoundSummary:
    """All that is known when a round closes; one line of the ledger, and all that a policy sees next round."""

    server_round: int
    plan: RoundPlan
    reports: tuple[ClientReport, ...]
    rejected: Mapping[str, str]
    """Site (or node) -> why its reply did not count."""
    aggregated: bool
    """False: below quorum, the global model stayed."""
    validation: Scores | None
    """Of the vector sent in this round (federated validation) or of the new one (server validation)."""
    baseline_validation: Mapping[str, Scores]
    bytes_up: int
    bytes_down: int
    seconds: float
    theta_digest: str
    busy: tuple[str, ...] = ()
    """Sites that were given no task, because they still work on one of an earlier round."""
    late: tuple[ClientReport, ...] = ()
    """Accepted replies to tasks of earlier rounds that came in this one; `server_round` says of which."""
    entered: tuple[tuple[str, int, float], ...] = ()
    """Late replies in this round's average: site, round of its task, staleness factor. A late reply that came in a
    round below quorum enters the next average; with `server.late = dropped` none does."""
    language: LanguageRound | None = None
    """Where the adapter was trained in this round."""
    joined: tuple[str, ...] = ()
    """Sites that were not there at the census and have a part in the run from this round on."""
    updates: Mapping[str, UpdateStats] = field(default_factory=dict)
    """Site -> what its update was like, of those that entered the aggregation or were passed over by it."""

    @property
    def work(self) -> tuple[ClientReport, ...]:
        """All accepted replies, in time and late: what was spent, whether it entered the average or not."""
        return self.reports + self.late
