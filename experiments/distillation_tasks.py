"""Tasks and arms of the distillation table, and what a kind of teacher makes of recorded soft labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from experiments.tweets_data import QUESTION
from llm_qfl.federation.config import RunConfig, Scalar
from llm_qfl.federation.config_language import EMBEDDED_MODEL, LanguageConfig
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.seeding import stream
from llm_qfl.federation.types import Array, Scores
from simulation.policy_teachers import Recording
from simulation.policy_world import Case

if TYPE_CHECKING:
    from llm_qfl.federation.setup import Setup

Kind = Literal["true", "averaged", "shuffled", "uniform"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OWN, AVERAGED = 1, 2
"""Parts of a recording: what a site's own adapter says, just tuned, as in a run; and what their average says."""
WEIGHTS = (0.1, 0.3, 0.5)
FIRST_SEED = 42
SITES, ALPHA, ROUNDS, STEPS = 4, 0.5, 20, 10
TWEETS = "tweets-test-numbers.csv"
"""The last of the tweets' files that is written."""


@dataclass(frozen=True)
class Tuning:
    """How long teachers are tuned, and on how many tweets.

    Attributes:
        model: base language model.
        rounds: of tuning and averaging.
        steps: of a site in such a round.
        train, test: tweets; the test ones are the first of the test file.
    """

    model: str = EMBEDDED_MODEL
    rounds: int = 3
    steps: int = 10
    train: int = 800
    test: int = 500

    @property
    def name(self) -> str:
        """As kept with recordings and lines: those of another tuning stand apart."""
        told = f"{self.rounds} rounds of {self.steps} steps"
        return f"{self.model}, {told}, {self.train} tweets to tune and train on, {self.test} to test"

    def config(self, rows: str) -> LanguageConfig:
        """The section `language`: the whole model at the sites, its last layers tuned.

        Of breast-cancer it reads few columns and small batches: there the teacher is to be the one that knows less.
        """
        few: dict[str, Any] = {"prompt": QUESTION} if rows == "tweets" else {"columns": 3, "batch_size": 8}
        return LanguageConfig(
            model=self.model, method="fedlora-tail", every=1, steps=self.steps, dtype="float32", **few
        )


@dataclass(frozen=True, order=True)
class Arm:
    """A weight and a teacher; without a weight every teacher is the same.

    Attributes:
        weight: lambda.
        kind: of the teacher; `none` where lambda is 0.
    """

    weight: float
    kind: str

    @property
    def name(self) -> str:
        """As kept."""
        return f"{self.kind} {self.weight:g}"


NONE = Arm(0.0, "none")
ARMS = (NONE, *(Arm(weight, kind) for kind in KINDS for weight in WEIGHTS))


@dataclass(frozen=True)
class Task:
    """Rows, and what the QNN sees of them.

    Attributes:
        rows: `tweets` or `breast-cancer`: tasks of the same rows share their recordings.
        reduction: `data.reduction`.
    """

    rows: str
    reduction: str

    def case(self, split: int, work: Path) -> Case:
        """The federation that is played: tweets as numbers."""
        return Case(self._source(work, "numbers"), SITES, ALPHA, split, ROUNDS, self._more(work, "numbers"))

    def text_config(self, split: int, work: Path) -> RunConfig:
        """The same rows as the language model reads them."""
        case = Case(self._source(work, "texts"), SITES, ALPHA, split, ROUNDS, self._more(work, "texts"))
        return case.config()

    def text_setup(self, setup: Setup) -> Setup:
        """The same setup, of rows that are texts."""
        return replace(setup, encoding="language", columns=("text",)) if self.rows == "tweets" else setup

    def recording(self, split: int, work: Path) -> Path:
        """What the language models of one split said."""
        return work / "recordings" / f"{self.rows}-{split}.npz"

    def _source(self, work: Path, kind: str) -> str:
        return f"csv:{work / f'tweets-train-{kind}.csv'}" if self.rows == "tweets" else self.rows

    def _more(self, work: Path, kind: str) -> tuple[tuple[str, Scalar], ...]:
        more: dict[str, Scalar] = {"data.reduction": self.reduction, "training.steps": STEPS}
        if self.rows == "tweets":
            more["data.test"] = f"file:{work / f'tweets-test-{kind}.csv'}"
            if kind == "texts":
                # for the configuration's own checks: this config only says which rows are whose
                more |= {"data.encoding": "language", "language.model": EMBEDDED_MODEL, "language.dtype": "float32"}
        return tuple(more.items())


TASKS = {
    "tweets, pca": Task("tweets", "pca"),
    "tweets, discriminant": Task("tweets", "discriminant"),
    "breast-cancer": Task("breast-cancer", "pca"),
}


def taught(recording: Recording, kind: str, seed: int) -> Recording:
    """The teacher of a kind, from the first round on and to the last.

    Args:
        recording: with the parts `OWN` and `AVERAGED`.
        kind: `true` (the site's own adapter), `averaged` (the federation's), `shuffled` (the site's own, every soft
            label dealt anew to some row of the site: it tells the classes' shares, and nothing of a row) or `uniform`
            (1 / classes: label smoothing).
        seed: of the shuffling.

    Raises:
        FederationError: no such kind.
    """
    part = AVERAGED if kind == "averaged" else OWN
    labels: Mapping[str, Array] = recording.labels[part]
    if kind == "shuffled":
        labels = {
            site: soft[stream(seed, site, 0, "distillation/shuffled").permutation(len(soft))]
            for site, soft in labels.items()
        }
    elif kind == "uniform":
        labels = {site: np.full_like(soft, 1 / soft.shape[1]) for site, soft in labels.items()}
    elif kind not in KINDS:
        raise FederationError(f"distillation: expected a teacher among {', '.join(KINDS)}, got {kind!r}")
    return replace(recording, losses={1: recording.losses[part]}, labels={1: labels}, kind=kind)


def split_of(seed: int, splits: int) -> int:
    """The seed of the deal that a seed is played on; seeds beyond the splits start over on the first one."""
    return FIRST_SEED + (seed - FIRST_SEED) % splits


def metrics(scores: Scores) -> dict[str, float | None]:
    """Accuracy, macro-recall and mean negative log-likelihood in nats."""
    return {"accuracy": scores.accuracy, "recall": scores.balanced_accuracy, "nll": scores.loss}
