"""Decides every round of a run: the fixed plan's budget, a rule, or the policy with the rule behind it.

    decider.decide(server_round, sites) -> Decision     before a round
    decider.close_round(summary) -> reward              after it (or `close`, of a round that is numbers already)

It keeps the history, the sites' budgets and the language model's losses, and nothing else; equal inputs give equal
decisions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from agent import shield as guard
from agent.actions import Action, Clients, Halt
from agent.asking import Asking
from agent.budgets import remaining
from agent.choice import Fallback
from agent.decisions import Decision, Json, Proposal
from agent.history import History, RoundRecord, Task, Teachers, record_of
from agent.means import Means
from agent.memory import Memory
from agent.rewards import DEFAULT as REWARD
from agent.rewards import step_reward
from agent.rules import RULES, FiredShare, Regulated, Regulation, regulate_sites, replayed, share_fired
from agent.selection import Selector
from agent.state import Setting, state_of
from agent.termination import Stop, Termination
from llm_qfl.federation.config_agent import AgentConfig, Rule, Selection
from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import RoundSummary


class Decider:
    """One run's decisions.

    Args:
        agent: the run config's section; any mode but `qfl`, whose plan needs no decisions.
        setting: what stays the same.
        means: what the run has at hand.
    """

    def __init__(self, agent: AgentConfig, setting: Setting, means: Means) -> None:
        self.agent, self.setting, self.means = agent, setting, means
        self.history = History()
        self.decisions: list[Decision] = []
        self.past: tuple[Json, ...] = ()
        """Lines of the decisions before a checkpoint that the run went on from."""
        self.teachers = Teachers()
        self._regulation = Regulation.of(agent, setting.cost)
        self._stops = Termination.of(agent, setting.classes, setting.rounds)
        self._selector = Selector.of(agent, means.seed)
        self.asking = Asking(agent, means)
        self._budgets: dict[str, int] = {}  # what every site was given last
        self._next: dict[str, int] = {}  # what the rule makes of that
        self._open: dict[Task, int] = {}  # evaluations of tasks that no accepted answer accounts for
        self._regulated: dict[str, Regulated] = {}
        self._fired: list[Mapping[str, Regulated]] = []

    @property
    def memory(self) -> Memory:
        """What the next decision depends on, for a checkpoint."""
        fired = tuple(self._fired)
        budgets, proposed, waiting = dict(self._budgets), dict(self._next), dict(self._open)
        return Memory(self.history, budgets, proposed, waiting, self.teachers, fired, self.asking.online)

    def remember(self, memory: Memory, lines: Sequence[Json] = ()) -> None:
        """Go on from a checkpoint; the next round decides as if the run had never stopped.

        Args:
            memory: what was remembered.
            lines: of `decisions.jsonl` so far.
        """
        self.history, self.teachers, self.past = memory.history, memory.teachers, tuple(lines)
        self._budgets, self._next = dict(memory.budgets), dict(memory.proposed)
        self._fired, self.asking.online, self._open = list(memory.fired), memory.online, dict(memory.waiting)
        self._regulated = dict(self._fired[-1]) if self._fired else {}

    @property
    def regulated(self) -> Mapping[str, Regulated]:
        """What the rule made of the last closed round, by site."""
        return self._regulated

    @property
    def fired(self) -> FiredShare:
        """How often the rule did something; in mode `policy`, would have."""
        return share_fired([list(one.values()) for one in self._fired])

    @property
    def fired_by_rule(self) -> dict[Rule, FiredShare]:
        """How often each of the five rules would have done something, given the losses of this run as they were."""
        first, found = self.means.first_budget, {}
        for rule in RULES:
            regulation = replace(self._regulation, rule=rule)
            done = replayed(regulation, self.history.rounds, first)
            found[rule] = share_fired([list(one.values()) for one in done])
        return found

    def decide(self, server_round: int, sites: Sequence[str]) -> Decision:
        """The plan of one round; a stop has no sites.

        Args:
            server_round: from 1.
            sites: those that are there and free, in any order.
        """
        began = time.perf_counter()
        rule = self._rule(server_round, sites)
        decision = self._by_rule(server_round, rule)
        if self.agent.mode == "policy":
            decision = self._by_policy(server_round, sites, rule)
        decision = replace(decision, milliseconds=1000 * (time.perf_counter() - began))
        self.decisions.append(decision)
        self._budgets |= decision.budgets
        self._next |= decision.budgets
        cost = self.setting.cost
        self._open |= {(server_round, site): cost.spent(budget) for site, budget in decision.budgets.items()}
        return decision

    def close_round(self, summary: RoundSummary) -> float | None:
        """Take a closed round in, with the language model's losses as they stand after it; see `close`."""
        self.teachers = self.teachers.after(summary)
        federated = self.setting.lag == 1
        return self.close(record_of(summary, self.teachers.sites, self.teachers.server, federated=federated))

    def close(self, record: RoundRecord) -> float | None:
        """Take a closed round in.

        Returns:
            The newest reward that is known: of the decision of `reward_round`; None without validation.

        Raises:
            FederationError: a round that was closed before.
        """
        if self.history.rounds and record.server_round <= self.history.rounds[-1].server_round:
            raise FederationError(
                f"decisions: expected a round after {self.history.rounds[-1].server_round}, got "
                f"{record.server_round}: it was closed before"
            )
        self.history = self.history.then(record)
        self._open = {task: most for task, most in self._open.items() if task not in record.settled}
        self._next, self._regulated = regulate_sites(self._regulation, self._next, record)
        self._fired.append(self._regulated)
        losses = self.history.validation()
        before, after = (losses[-2], losses[-1]) if len(losses) > 1 else (None, None)
        first = next((loss for loss in losses if loss is not None), None)
        if before is None or after is None or not first:  # a first loss of 0 leaves nothing to win
            return None
        earned = self.history.rounds[-1 - self.setting.lag]
        violated = any(one.server_round == earned.server_round and one.edits for one in self.decisions) or any(
            line["round"] == earned.server_round and line["shield_edits"] for line in self.past
        )
        cost = self.setting.prices.of_round(earned) / self.setting.full_cost if self.setting.full_cost else 0.0
        reward = step_reward(after - before, first, cost, REWARD, violated=violated)
        self.asking.online = self.asking.online.earned(earned.server_round, reward)
        return reward

    @property
    def reward_round(self) -> int | None:
        """The round whose decision earned what `close` gave last."""
        closed = len(self.history.rounds)
        return self.history.rounds[-1 - self.setting.lag].server_round if closed > self.setting.lag else None

    @property
    def _left(self) -> int | None:
        """Evaluations that the run may still give away; a task without an answer counts as if it were used up."""
        return remaining(self.agent.budget, self.history.evaluations + self._waiting)

    @property
    def _waiting(self) -> int:
        return sum(self._open.values())

    def _rule(self, server_round: int, sites: Sequence[str]) -> Proposal:
        """What the ratio rule does in this round."""
        stop = self._stops.check(self.history, self._left, self._smallest(len(sites)))
        if stop is not None:
            return Proposal((), {}, self._selection(), stop=stop)
        return self._plan(server_round, sites)

    def _plan(self, server_round: int, sites: Sequence[str]) -> Proposal:
        """Sites and budgets by the rule, in a run that goes on."""
        mode = self._selection()
        count = self._selector.count(self.agent.fraction, len(sites))
        chosen = self._selector.choose(mode, count, self.history, sites, server_round)
        budgets = {site: self._next.get(site, self.means.first_budget) for site in chosen.sites}
        return Proposal(chosen.sites, budgets, mode, chosen.forced)

    def _selection(self) -> Selection:
        """How the rule selects; behind the policy it looks at all sites, or begins with a draw where that is wished."""
        draws = self.agent.mode == "policy" and self.agent.select == "random" and not self.history.rounds
        return "random" if draws else self.agent.selection

    def _smallest(self, there: int) -> int:
        """Evaluations of the smallest round that is worth sending."""
        return self.setting.cost.least * min(max(self.agent.min_clients, 1), max(there, 1))

    def _limits(self, there: int) -> guard.Limits:
        return guard.Limits(
            cost=self.setting.cost,
            least=self._regulation.least,
            cap=self._regulation.cap,
            left=self._left,
            there=there,
            teaches=self.means.teaches,
            samples=self.means.samples,
            min_clients=self.agent.min_clients,
            patience=self.agent.stop_patience,
        )

    def _by_rule(self, server_round: int, rule: Proposal, fallback: Fallback | None = None) -> Decision:
        held = guard.shield(rule.budgets, self._limits(len(rule.sites)))
        stop = rule.stop
        if stop is None and not held.affordable:
            stop = Stop("budget", held.edits[-1])
        return Decision(
            server_round=server_round,
            by="rule",
            sites=() if stop else rule.sites,
            budgets={} if stop else held.budgets,
            weight=self.agent.distill_weight if self.means.teaches else 0.0,
            shots=self.means.shots,
            stop=stop,
            select=rule.select,
            rule=rule,
            edits=held.edits,
            forced=rule.forced,
            fallback=fallback,
            regulated=self._regulated,
        )

    def _by_policy(self, server_round: int, sites: Sequence[str], rule: Proposal) -> Decision:
        if rule.stop is not None and rule.stop.rule in ("rounds", "budget"):
            return self._by_rule(server_round, rule)
        budgets = self._standing(sites)
        limits = self._limits(len(sites))
        state = state_of(self.history, self.setting, budgets, sites, server_round, waiting=self._waiting)
        masked = guard.mask(limits, budgets, self.history, self._stops)
        preferences = self.asking.online.preferences
        chosen, probabilities = self.asking.choose(server_round, state, masked, self.history)
        if isinstance(chosen, Action):
            decision = self._carry_out(server_round, sites, chosen, limits)
        elif rule.stop is not None and self._steered:
            decision = self._by_rule(server_round, self._plan(server_round, sites), chosen)
        else:
            decision = self._by_rule(server_round, rule, chosen)
        seen = replace(decision, state=state, rule=rule, masked=masked.reasons)
        return replace(seen, probabilities=probabilities, preferences=preferences if probabilities else {})

    @property
    def _steered(self) -> bool:
        """Has the policy decided any round? Then it decides when to stop; a round that the rule takes over does not.

        Else the run is the rule's: of other sizes than the policy knows, without a model, or with a broken one.
        """
        return any(one.by == "policy" for one in self.decisions) or any(line["by"] == "policy" for line in self.past)

    def _standing(self, sites: Sequence[str]) -> dict[str, int]:
        """Budgets as they stand; a site that has none yet stands where the others do."""
        usual = int(median(self._budgets.values())) if self._budgets else self.means.first_budget
        return {site: self._budgets.get(site, usual) for site in sites}

    def _carry_out(self, server_round: int, sites: Sequence[str], action: Action, limits: guard.Limits) -> Decision:
        """The policy's action, shielded."""
        count = action.clients.count(len(sites))
        mode = "all" if action.clients is Clients.ALL else action.select.mode
        chosen = self._selector.choose(mode, count, self.history, sites, server_round)
        standing = self._standing(chosen.sites)
        held = guard.shield(guard.local_budgets(action, limits, standing), limits)
        stop = None
        if action.stop is Halt.STOP:
            stop = Stop("policy", "the policy chose to stop; the shield allowed it")
        elif not held.affordable:
            stop = Stop("budget", held.edits[-1])
        return Decision(
            server_round=server_round,
            by="policy",
            sites=() if stop else chosen.sites,
            budgets={} if stop else held.budgets,
            weight=action.weight.weight,
            shots=action.shots.of(self.means.shots),
            stop=stop,
            select=mode,
            action=action,
            edits=held.edits,
            forced=chosen.forced,
            regulated=self._regulated,
        )
