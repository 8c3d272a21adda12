"""The run config's keys against bad clients; they stand in the section `server`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_qfl.federation.section import Section

Aggregation = Literal["mean", "trimmed-mean", "median", "krum", "multi-krum"]


class RobustKeys(Section):
    """How much one site can move the global model."""

    aggregation: Aggregation = "mean"
    """`mean` (by `server.weighting`), or, every site alike: `trimmed-mean`, `median` (both by coordinate), `krum` (the
    one update that is nearest to the others), `multi-krum` (the mean of those that are)."""
    bad_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share of a round's replies, rounded up, that `trimmed-mean` and both Krums take to be bad at most."""
    norm_bound: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Longest update (Euclidean, of theta and of each baseline) that enters the aggregation; longer ones are scaled
    down to it; 0 scales none. Updates that no optimizer can make in the round's steps are rejected in any case."""
    row_cap: Annotated[int, Field(ge=0)] = 0
    """Most rows that a site's weight counts; 0 sets no limit."""
