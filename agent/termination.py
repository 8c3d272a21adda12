"""When a run ends before its last round, and why.

Alignment and distance are the paper's two rules; patience, the plateau and the quality floor are ours: at the start a
loss stands still too, and a model that guesses is aligned with another one that guesses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from agent.history import History
from llm_qfl.federation.config_agent import AgentConfig


@dataclass(frozen=True)
class Stop:
    """Why a run stops: which rule, and in words."""

    rule: str
    why: str


@dataclass(frozen=True)
class Termination:
    """The stop rules. Losses in nats.

    Attributes:
        align: |F_s - L_s| below which the server is aligned with the language model; 0 never.
        distance: change of the mean distance below which it stands still; 0 never.
        plateau: fall of validation loss below its best that still counts as progress; 0 never.
        patience: rounds in a row.
        after: closed rounds before which none of these three stops.
        floor: largest validation loss with which they may, nats.
        tolerance: how far above the run's best it may lie.
        rounds: rounds of the run.
    """

    align: float
    distance: float
    plateau: float
    patience: int
    after: int
    floor: float
    tolerance: float
    rounds: int

    @classmethod
    def of(cls, agent: AgentConfig, classes: int, rounds: int) -> Termination:
        """From the run config; mode `qfl` stops by its last round only.

        Args:
            agent: the section.
            classes: C; guessing costs ln C.
            rounds: `server.rounds`.
        """
        on = float(agent.regulates)
        return cls(
            align=agent.stop_align * on,
            distance=agent.stop_distance * on,
            plateau=agent.stop_plateau * on,
            patience=agent.stop_patience,
            after=agent.stop_after,
            floor=agent.stop_floor * math.log(classes),
            tolerance=agent.stop_tolerance,
            rounds=rounds,
        )

    def check(self, history: History, left: int | None = None, least: int = 0) -> Stop | None:
        """Shall the run stop here?

        Args:
            history: closed rounds.
            left: evaluations that the run has left, or None.
            least: evaluations of the smallest round that is worth sending.
        """
        closed = history.rounds[-1].server_round if history.rounds else 0
        if closed >= self.rounds:
            return Stop("rounds", f"{closed} of {self.rounds} rounds are done")
        if left is not None and left < least:
            return Stop("budget", f"{left} evaluations are left, a round needs {least}")
        if not self.may_stop(history):
            return None
        return self._alignment(history) or self._distance(history) or self._plateau(history)

    def may_stop(self, history: History) -> bool:
        """Is the model good enough, and the run old enough, that standing still may end it?"""
        losses = history.losses()
        if not losses or history.rounds[-1].server_round < self.after:
            return False
        return losses[-1] <= self.floor and losses[-1] <= min(losses) + self.tolerance

    def _alignment(self, history: History) -> Stop | None:
        recent = history.rounds[-self.patience :]
        if not self.align or len(recent) < self.patience:
            return None
        gaps = [
            abs(record.server_loss - record.teacher_loss)
            for record in recent
            if record.server_loss is not None and record.teacher_loss is not None
        ]
        if len(gaps) < self.patience or max(gaps) >= self.align:
            return None
        return Stop(
            "alignment",
            f"validation loss within {self.align:g} nats of the language model's for {self.patience} rounds "
            f"(now {gaps[-1]:.4f})",
        )

    def _distance(self, history: History) -> Stop | None:
        recent = [record.mean_distance for record in history.rounds[-self.patience - 1 :]]
        known = [distance for distance in recent if distance is not None]
        if not self.distance or len(known) <= self.patience:
            return None
        moves = [abs(after - before) for before, after in pairwise(known)]
        if max(moves) >= self.distance:
            return None
        return Stop(
            "distance",
            f"the sites' mean distance to the server moved by less than {self.distance:g} nats for {self.patience} "
            f"rounds (now {known[-1]:.4f})",
        )

    def _plateau(self, history: History) -> Stop | None:
        losses = history.losses()
        if not self.plateau or len(losses) <= self.patience:
            return None
        before, recent = min(losses[: -self.patience]), min(losses[-self.patience :])
        if recent < before - self.plateau:
            return None
        return Stop(
            "plateau",
            f"validation loss fell by no more than {self.plateau:g} nats below its best ({before:.4f}) in "
            f"{self.patience} rounds",
        )
