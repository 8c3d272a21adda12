"""Asks the policy in a round, or says why it is not asked."""

from __future__ import annotations

import threading

from agent import shield as guard
from agent.actions import Action
from agent.choice import Deadline, Fallback, Probabilities, Scorer, Trust, ask, pick
from agent.history import History
from agent.means import Means
from agent.online import Online
from agent.state import State
from llm_qfl.federation.config_agent import AgentConfig
from llm_qfl.federation.seeding import SERVER, stream


class Asking:
    """The policy of a run, and how far it is trusted.

    Args:
        agent: the run config's section.
        means: what the run has at hand.

    Attributes:
        online: the bandit on top of it.
    """

    def __init__(self, agent: AgentConfig, means: Means) -> None:
        self.online = Online(agent.online_rate)
        self._draws, self._means = agent.choice == "sample", means
        self._deadline = Deadline(agent.decision_timeout)
        self._trust = Trust(agent.max_entropy, agent.min_probability, agent.regress_rounds, agent.stop_tolerance)
        self._replayed: dict[int, str] = {}

    def replay(self, server_round: int, timed_out: str) -> None:
        """A round that was decided before the run was interrupted: the clock has no second say in it.

        Args:
            server_round: the round.
            timed_out: why the policy's decision came too late then; empty where it did not.
        """
        self._replayed[server_round] = timed_out

    def choose(
        self, server_round: int, state: State, masked: guard.Masked, history: History
    ) -> tuple[Action | Fallback, Probabilities]:
        """The policy's action, or why the rule decides; and the probabilities, where it was asked.

        Args:
            server_round: the round.
            state: what the policy is shown.
            masked: options that it may not choose.
            history: closed rounds.
        """
        before = self._unasked(server_round, state, masked, history)
        if isinstance(before, Fallback):
            return before, {}
        timed_out = self._replayed.get(server_round)
        if timed_out:
            return Fallback("timeout", timed_out), {}
        deadline = self._deadline if timed_out is None else Deadline(threading.TIMEOUT_MAX)
        found = ask(before, state.text(), masked.allowed, deadline)
        if isinstance(found, Fallback):
            return found, {}
        found = self.online.tilted(found)
        if (unsure := self._trust.doubts(found, masked.allowed)) is not None:
            return unsure, found
        draw = stream(self._means.seed, SERVER, server_round, "policy") if self._draws else None
        action = pick(found, draw)
        if isinstance(action, Action):
            self.online = self.online.chose(server_round, action, found)
        return action, found

    def _unasked(self, server_round: int, state: State, masked: guard.Masked, history: History) -> Fallback | Scorer:
        """Why the policy is not even asked, or the policy."""
        if not history.rounds:
            return Fallback("no history", "no round has closed yet")
        if server_round <= (closed := history.rounds[-1].server_round):
            return Fallback("stale", f"round {server_round} was closed: the last closed round is {closed}")
        if self._means.scorer is None:
            return Fallback("missing model", self._means.missing)
        if masked.empty:
            return Fallback("masked", f"no option of {', '.join(masked.empty)} is allowed")
        if outside := state.outside(self._means.ranges or {}):
            return Fallback("out of range", "; ".join(outside))
        return self._trust.regressed(history) or self._means.scorer
