"""Pure aggregation: reports of a round -> the next global state.

Sums of floats depend on their order, so reports are sorted by site first: the same replies in any order of arrival
give the same bits. Averaging angles assumes a common start, which every site has: the received vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import Array, Arrays, ClientReport, GlobalState


def weighted_mean(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Sum of p_i * a_i with p_i = w_i / sum(w), in the order given (McMahan et al. 2017, Algorithm 1)."""
    total = float(sum(weights))
    result = np.zeros_like(arrays[0])
    for array, weight in zip(arrays, weights, strict=True):
        result += array * (weight / total)
    return result


def aggregate(state: GlobalState, reports: Sequence[ClientReport], *, weighting: str = "examples") -> GlobalState:
    """The next global state from the accepted reports.

    Args:
        state: the state that was sent.
        reports: accepted reports of this round, in any order.
        weighting: `examples` (p_i = n_i / sum n) or `uniform`.

    Raises:
        FederationError: no report, or an unknown weighting.
    """
    if not reports:
        raise FederationError("aggregate: expected at least one accepted report, got none")
    if weighting not in ("examples", "uniform"):
        raise FederationError(f"aggregate: unknown weighting {weighting!r}, expected examples or uniform")
    ordered = sorted(reports, key=lambda report: report.site)
    weights = [float(r.num_examples) if weighting == "examples" else 1.0 for r in ordered]
    theta = weighted_mean([r.theta for r in ordered], weights)
    baselines: Mapping[str, Arrays] = {
        name: {key: weighted_mean([r.baselines[name][key] for r in ordered], weights) for key in values}
        for name, values in state.baselines.items()
    }
    return GlobalState(state.server_round, theta, state.parameter_names, baselines)
