"""What the priced comparison runs on: data sets, splits, price lists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_qfl.federation.config import Scalar
from simulation.policy_world import Case, World

FIRST_SEED = 42
ROUNDS = 40
"""Few sites with few steps reach the target in many rounds; with 20 of them they would be cut off."""
SMALL = 2000
"""Rows below which Dirichlet 0.1 is dealt to 4 sites: over 10 some would have none."""

# How the cost of a round of the configured plan (all sites, `training.steps`) divides: circuits, the round, bytes.
PRICES = {
    "circuits dear": (0.9, 0.08, 0.02),
    "rounds dear": (0.08, 0.9, 0.02),
    "mixed": (0.45, 0.45, 0.1),
}


@dataclass(frozen=True)
class Data:
    """A data set of the comparison.

    Attributes:
        source: `data.source`, with {data} and {work} for folders.
        rows: about how many.
        more: further keys of the run config.
    """

    source: str
    rows: int
    more: tuple[tuple[str, Scalar], ...] = ()


DATA = {
    "breast-cancer": Data("breast-cancer", 569, (("data.reduction", "pca"),)),
    "digits": Data("digits", 357, (("data.classes", "3,8"), ("data.reduction", "pca"))),
    "dna": Data(
        "csv:{work}/dna.csv",
        3000,
        (("training.batch-size", 50), ("data.test", "file:{data}/human_or_worm_test.csv.gz")),
    ),
    "tweets-pca": Data("csv:{work}/tweets.csv", 3000, (("data.reduction", "pca"), ("training.batch-size", 50))),
    "tweets-discriminant": Data("csv:{work}/tweets.csv", 3000, (("training.batch-size", 50),)),
}


@dataclass(frozen=True)
class Cell:
    """A data set with a split."""

    data: str
    alpha: float

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.data} {self.alpha:g}"

    @property
    def sites(self) -> int:
        """How many."""
        return 4 if self.alpha < 0.5 and DATA[self.data].rows < SMALL else 10

    def case(self, seed: int, data: Path, work: Path, *, play_seed: int | None = None) -> Case:
        """The federation of a seed; `play_seed` is of what is drawn once its rows are dealt."""
        about, folders = DATA[self.data], {"data": str(data), "work": str(work)}
        more = tuple((key, value.format(**folders) if isinstance(value, str) else value) for key, value in about.more)
        return Case(about.source.format(**folders), self.sites, self.alpha, seed, ROUNDS, more, play_seed)


CELLS = {cell.name: cell for cell in (Cell(data, alpha) for data in DATA for alpha in (0.5, 0.1))}


def split_of(seed: int, each: int) -> int:
    """The seed of the deal, and so of the recording, that a seed is played on: the first `each` seeds on the first."""
    return FIRST_SEED + (seed - FIRST_SEED) // each


MESSAGE = 1500
"""Bytes of a task or a reply beside theta: names, plan, report, digests."""


def unit(world: World) -> tuple[int, int]:
    """Circuits and bytes of a round of the configured plan: what price lists are relative to."""
    from llm_qfl.federation.config_agent import AgentConfig

    setting = world.base(AgentConfig(mode="llm-qfl-all")).setting
    return setting.round_circuits, setting.round_bytes + 2 * len(world.partitions) * MESSAGE
