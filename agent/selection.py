"""Which sites train in a round: all, those nearest to a reference, those of most use, or a seeded draw.

Sites that never answered come first (nothing is known of them), in a seeded order. The fairness window goes before
all: every site that stays there is asked at least once in so many rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.history import History, Known, slowness
from llm_qfl.federation.config_agent import AgentConfig, Reference, Selection
from llm_qfl.federation.seeding import SERVER, stream

# Oort (Lai et al., arXiv 2010.06081): weight of the staleness term, exponent of the penalty for slow sites.
OORT_STALENESS, OORT_SLOW = 0.1, 2.0


@dataclass(frozen=True)
class Selected:
    """The chosen sites, sorted by name.

    Attributes:
        sites: their names.
        mode: how they were chosen.
        forced: those of them that the fairness window brought in.
        scores: what sites were ranked by, smaller first; those without a score were unknown.
    """

    sites: tuple[str, ...]
    mode: Selection
    forced: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Selector:
    """How sites are chosen.

    Attributes:
        seed: `server.seed`; ties and draws come from it.
        align_to: reference of `align`.
        window: fairness window, rounds; 0 for none.
        least: fewest sites, where there are as many.
    """

    seed: int
    align_to: Reference = "server"
    window: int = 0
    least: int = 2

    @classmethod
    def of(cls, agent: AgentConfig, seed: int) -> Selector:
        """From the run config."""
        return cls(seed, agent.align_to, agent.fairness_window, agent.min_clients)

    def count(self, fraction: float, there: int) -> int:
        """K: this share of the sites that are there, rounded down as in the reference, and not below the floor."""
        # 0.3 * 10 is a hair above 3, 0.7 * 10 a hair below 7.
        return min(max(math.floor(fraction * there + 1e-9), self.least, 1), there)

    def choose(self, mode: Selection, count: int, history: History, sites: Sequence[str], next_round: int) -> Selected:
        """Choose for a round.

        Args:
            mode: how.
            count: K, how many; raised where the fairness window asks for more.
            history: closed rounds.
            sites: sites that are there and free, in any order.
            next_round: the round to choose for.
        """
        there = sorted(sites)
        if mode == "all" or count >= len(there):
            return Selected(tuple(there), mode)
        scores = self.scores(mode, history, there, next_round)
        luck = self._luck(there, next_round)
        order = sorted(there, key=lambda site: (site in scores, scores.get(site, 0.0), luck[site]))
        forced = self.forced(history, there, count, next_round)
        rest = [site for site in order if site not in forced]
        chosen = [*forced, *rest[: max(count - len(forced), 0)]]
        # A site that would have been chosen anyway was not brought in by the window.
        brought = tuple(sorted(set(forced) - set(order[:count])))
        return Selected(tuple(sorted(chosen)), mode, brought, scores)

    def scores(self, mode: Selection, history: History, there: Sequence[str], next_round: int) -> dict[str, float]:
        """What known sites are ranked by, smaller first. `random` knows nothing of anybody."""
        known = {site: one for site, one in history.known().items() if site in there}
        if mode == "align":
            near = {
                site: one.distance if self.align_to == "server" else one.language_distance
                for site, one in known.items()
            }
            return {site: distance for site, distance in near.items() if distance is not None}
        if mode == "oort":
            return {site: -utility for site, utility in oort_utilities(known, next_round).items()}
        return {}

    def forced(self, history: History, there: Sequence[str], count: int, next_round: int) -> tuple[str, ...]:
        """Sites that must be asked now, or some site's window passes with `count` sites a round.

        A site asked last in round s is due by round s + window; one that was never asked, by round `window`. Taking the
        fewest that keep every deadline spreads them over the rounds, where waiting for the last moment would ask them
        all at once.
        """
        if not self.window:
            return ()
        asked, luck = history.last_asked(), self._luck(there, next_round)
        left = {site: max(asked.get(site, 0) + self.window - next_round, 0) for site in there}  # rounds to spare
        need = 0
        for spare in range(self.window):
            within = sum(value <= spare for value in left.values())
            need = max(need, within - count * spare)
        order = sorted(there, key=lambda site: (left[site], luck[site]))
        return tuple(order[:need])

    def _luck(self, there: Sequence[str], next_round: int) -> dict[str, float]:
        """A seeded number for every site, the same whoever else is there."""
        return {site: float(stream(self.seed, SERVER, next_round, f"select {site}").random()) for site in there}


def oort_utilities(known: Mapping[str, Known], next_round: int) -> dict[str, float]:
    """Oort's utility of sites that answered before, larger is better.

    Rows times loss (Oort takes the root mean square over a site's rows, of which the server sees only the mean),
    divided by the largest; plus sqrt(.1 ln t / last round), so that nobody is forgotten; times (median / own)^2 for
    sites slower than the median of those that wait for a QPU; a simulator's seconds would be others in a second run.

    Args:
        known: last answers.
        next_round: t.
    """
    if not known:
        return {}
    statistical = {site: one.record.examples * one.record.qnn_loss for site, one in known.items()}
    most = max(statistical.values()) or 1.0
    slow = slowness(known)
    found: dict[str, float] = {}
    for site, one in known.items():
        staleness = float(np.sqrt(OORT_STALENESS * np.log(max(next_round, 1)) / max(one.server_round, 1)))
        found[site] = (statistical[site] / most + staleness) / max(slow[site], 1.0) ** OORT_SLOW
    return found
