"""Pure aggregation: reports of a round -> the next global state.

Sums of floats depend on their order, so reports are sorted by site first: the same replies in any order of arrival
give the same bits. Averaging angles assumes a common start, which every site has: the received vector.

A late report started elsewhere, at the state of its own round. So it enters as an update, rebased on the current
state, and damped by its lag: current + staleness^lag * (theta_late - theta_sent_then), with the share p_i that its
rows give it. Updates of older states with falling weights: FedBuff (Nguyen et al., AISTATS 2022), which adds buffered
updates scaled by staleness, and FedAsync (Xie et al. 2019), which mixes with alpha * s(lag). As in both, what
the damping takes from a late update stays with the current state: it is not shared out to the other sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import Array, Arrays, ClientReport, GlobalState


@dataclass(frozen=True, eq=False)
class Late:
    """A report that came after its round.

    Attributes:
        report: what the site made of `sent`.
        sent: the state that it was given.
        factor: staleness^lag, in (0, 1].
    """

    report: ClientReport
    sent: GlobalState
    factor: float

    def rebased(self, current: GlobalState) -> tuple[Array, Mapping[str, Arrays]]:
        """Theta and the baselines' arrays: current + factor * (late - sent then)."""
        theta = current.theta + self.factor * (self.report.theta - self.sent.theta)
        baselines = {
            name: {
                key: value + self.factor * (self.report.baselines[name][key] - self.sent.baselines[name][key])
                for key, value in values.items()
            }
            for name, values in current.baselines.items()
        }
        return theta, baselines


def weighted_mean(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Sum of p_i * a_i with p_i = w_i / sum(w), in the order given (McMahan et al. 2017, Algorithm 1)."""
    total = float(sum(weights))
    result = np.zeros_like(arrays[0])
    for array, weight in zip(arrays, weights, strict=True):
        result += array * (weight / total)
    return result


def aggregate(
    state: GlobalState, reports: Sequence[ClientReport], *, weighting: str = "examples", late: Sequence[Late] = ()
) -> GlobalState:
    """The next global state from the accepted reports.

    Args:
        state: the state that was sent in this round.
        reports: accepted reports of this round, in any order.
        weighting: `examples` (p_i = n_i / sum n, late reports among them) or `uniform`.
        late: accepted reports of earlier rounds, in any order.

    Raises:
        FederationError: no report, or an unknown weighting.
    """
    if not reports and not late:
        raise FederationError("aggregate: expected at least one accepted report, got none")
    if weighting not in ("examples", "uniform"):
        raise FederationError(f"aggregate: unknown weighting {weighting!r}, expected examples or uniform")
    entries = [(report, report.theta, report.baselines) for report in reports]
    entries += [(one.report, *one.rebased(state)) for one in late]
    entries.sort(key=lambda entry: (entry[0].site, entry[0].server_round))
    weights = [float(report.num_examples) if weighting == "examples" else 1.0 for report, _, _ in entries]
    theta = weighted_mean([theta for _, theta, _ in entries], weights)
    baselines: Mapping[str, Arrays] = {
        name: {key: weighted_mean([arrays[name][key] for _, _, arrays in entries], weights) for key in values}
        for name, values in state.baselines.items()
    }
    return GlobalState(state.server_round, theta, state.parameter_names, baselines)
