"""What a decider has at hand in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.choice import Scorer


@dataclass(frozen=True)
class Means:
    """What a run has at hand.

    Attributes:
        seed: `server.seed`.
        first_budget: evaluations of a site that has none yet (`training.steps`).
        shots: `quantum.shots`.
        teaches: do sites have soft labels?
        samples: does any site's backend sample?
        scorer: the loaded policy, or None.
        missing: why there is none.
        ranges: the state's buckets that the policy was trained on, by name.
    """

    seed: int
    first_budget: int
    shots: int
    teaches: bool = False
    samples: bool = False
    scorer: Scorer | None = None
    missing: str = "no policy was loaded"
    ranges: Mapping[str, tuple[int, int]] | None = None
