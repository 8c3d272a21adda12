"""Which site has which task, and what becomes of the tasks that are not answered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from llm_qfl.federation.errors import FederationError
from llm_qfl.federation.types import GlobalState, RoundPlan
from server_app.claims import Claims
from server_app.grid import NOT_TAKEN, BoundedGrid
from server_app.outstanding import Accepted, Given, Held, Outstanding
from server_app.post import Post
from server_app.roster import Roster
from server_app.terms import Terms

UNFINISHED = 1003  # a client's answer: paid jobs wait in its ledger, send the task again
CLIENT_LOST = (*range(9), UNFINISHED)  # Flower's own error codes: no client of ours has answered


class Tasks:
    """The sites of a run and their tasks, from round to round.

    Args:
        terms: of the run.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.roster = Roster(terms.config, terms.roster, terms.censuses, terms.setup)
        self.post = Post(terms, self.roster)
        check = Claims(terms.config, terms.fingerprint, self.roster.censuses, terms.budget).check
        classes, staleness = len(terms.setup.class_names), terms.config.server.staleness
        self.open = Outstanding(self.roster.sites, classes, staleness, check)
        self.working: tuple[str, ...] = ()
        """Sites that are given no fresh task in this round, because they have one."""
        self._grid: BoundedGrid | None = None
        self._absent: dict[str, str] = {}
        self._again: frozenset[str] = frozenset()
        self._enough = len(self.roster.nodes)  # sites without which a round waits, where that is less than a quorum

    def memory(self) -> tuple[dict[str, Given], tuple[Held, ...]]:
        """Open tasks, `until` counted from now, and late replies that wait for the next average."""
        given, held = self.open.memory()
        return {site: replace(task, until=task.until - self._now()) for site, task in given.items()}, held

    def remember(self, given: Mapping[str, Given], held: Iterable[Held]) -> None:
        """Go on after `memory`: nobody answers to a server that is gone, so tasks that may have cost are sent again."""
        kept = {
            site: replace(task, until=task.until + self._now()) for site, task in given.items() if self._keeps(site)
        }
        self.open.remember(kept, held)

    @property
    def busy(self) -> dict[str, int]:
        """See Outstanding."""
        return self.open.busy

    @property
    def lost(self) -> dict[str, Given]:
        """See Outstanding."""
        return self.open.lost

    def connect(self, grid: Grid) -> set[str]:
        """Sites whose node is connected now."""
        self._grid = grid if isinstance(grid, BoundedGrid) else None
        if self._grid is not None:
            for site in self.roster.look(self._grid):
                self.post.has_setup.discard(site)
                if self._terms.language is not None:
                    self._terms.language.exchange.lost(site)
                # Nobody works on what the node before had; a site that pays is sent it again.
                if site in self.open.busy and (not self._keeps(site) or self.open.lose(site, self._now())):
                    self.open.close(site)
        connected = set(grid.get_node_ids())
        return {site for site, node in self.roster.nodes.items() if node in connected}

    def wait_for_sites(self, grid: Grid, note: Callable[[str], None]) -> None:
        """Return once a quorum of the run's sites is there, or after `server.wait` where any is; then with those.

        Nobody is waited for again in later rounds, unless fewer are there than then.

        Args:
            grid: the nodes.
            note: is told before it waits.

        Raises:
            FederationError: nobody came.
        """
        server = self._terms.config.server
        there = self.connect(grid)
        sites = len(self.roster.nodes)
        needed = max(1, math.ceil(server.quorum * sites))
        if len(there) >= min(needed, self._enough) or not isinstance(grid, BoundedGrid):
            return
        note(
            f"{len(there)} of {sites} sites are there, {needed} make a quorum (server.quorum): waiting for others, "
            f"{server.wait:.0f} s at most (server.wait)"
        )
        grid.wait_until(lambda: len(self.connect(grid)) >= needed, server.wait)
        self._enough = len(self.connect(grid))
        if not self._enough:
            raise FederationError(
                f"waited {server.wait:.0f} s (server.wait), none of the {sites} sites is there; start the SuperNodes, "
                "then go on with server.resume=<run folder>"
            )

    def begin(self, grid: Grid) -> set[str]:
        """A round begins; the sites that are there and free."""
        self.post.bytes_down = 0
        there = self.connect(grid)
        self._absent = {site: "not connected" for site in self.roster.nodes if site not in there}
        for site, task in self.lost.items():
            which = f"task of round {task.server_round}"
            if self._now() >= task.until:
                self.open.close(site)
                self._absent[site] = f"{which} given up: server.patience is over"
            elif site not in there:
                self._absent[site] = f"not connected; {which} waits to be sent again"
        taken = {*self.busy, *self.lost} & there
        self.working = tuple(sorted(taken))
        return there - taken

    def fresh(self, state: GlobalState, plan: RoundPlan) -> list[Message]:
        """A task of this round for each site of the plan."""
        server = self._terms.config.server
        # A train task outlives its round: what a site paid for is not lost with it.
        ttl = max(server.deadline, server.patience)
        for site in plan.sites:
            self.open.give(site, Given(state, plan, self._now() + ttl))
        return [self.post.message(MessageType.TRAIN, site, state, plan, ttl) for site in plan.sites]

    def again(self) -> list[Message]:
        """The lost tasks of sites that are there, as they were."""
        messages = []
        self._again = frozenset(self.open.lost) - set(self._absent)
        for site in sorted(self._again):
            task = self.open.again(site)
            left = task.until - self._now()
            messages.append(self.post.message(MessageType.TRAIN, site, task.state, task.plan, left))
        return messages

    @property
    def paid_for(self) -> dict[str, Given]:
        """Site -> its open task for which jobs may have been paid; empty where late replies are dropped."""
        return {site: task for site, task in self.open.working.items() if self._keeps(site)}

    def keep_paid_for(self) -> float:
        """Wait no longer for sites that cannot have paid; seconds until the last of the other tasks ends."""
        for site in set(self.busy) - set(self.paid_for):
            self.give_up(site)
        return max((task.until - self._now() for task in self.paid_for.values()), default=0.0)

    def scoring_ttl(self, site: str) -> float:
        """Seconds that a site may take for the scores of the final model."""
        server = self._terms.config.server
        return max(server.deadline, server.patience) if site in self.roster.paying else server.deadline

    def wait_for_lost(self, grid: Grid) -> None:
        """Return once the sites with a lost task are there, or after `server.wait`."""
        if self.lost and isinstance(grid, BoundedGrid):
            grid.wait_until(lambda: set(self.lost) <= self.connect(grid), self._terms.config.server.wait)

    def give_up_absent(self, why: str) -> None:
        """No lost task waits for a site that is not there."""
        for site, task in self.lost.items():
            if site in self._absent:
                self._absent[site] = f"not connected; task of round {task.server_round} given up, {why}"
                self.open.close(site)

    def accept(self, replies: Iterable[Message], server_round: int) -> Accepted:
        """What came of a round's exchange, with the reasons of all that did not."""
        accepted = self.open.accept(replies, server_round, hold=self._terms.config.server.late == "weighted")
        self.post.has_setup |= {report.site for report in accepted.reports + accepted.late}
        rejected = {**accepted.rejected, **self._absent, **self._unanswered(server_round)}
        return replace(accepted, rejected=dict(sorted(rejected.items())))

    def _unanswered(self, server_round: int) -> dict[str, str]:
        """Why sites gave no reply.

        Those whose task is still valid stay busy. A task that was lost is kept to be sent again, or closed.
        """
        valid = frozenset[int]() if self._grid is None else self._grid.busy
        reasons: dict[str, str] = {}
        for site, number in self.open.busy.items():
            waits = self.roster.nodes[site] in valid and site not in self._absent
            if waits and number != server_round and site not in self._again:
                continue
            (reason,) = self.failures({site}).values()
            which = f"task of round {number}"
            if number == server_round:
                text = reason
            elif site in self._again:
                text = f"{which}, sent again: {reason}"
            else:
                text = f"{which}: {self._absent.get(site, reason)}"
            if not waits:
                text += self._lose(site, which)
            reasons[site] = text
        return reasons

    def _lose(self, site: str, which: str) -> str:
        """Nobody works on the site's task any more; what becomes of it, in words that follow a reason."""
        if not self._may_have_paid(site):
            self.give_up(site)
            return ""
        if self._grid is not None:
            self._grid.forget([self.roster.nodes[site]])
        problem = self.open.lose(site, self._now())
        return f"; {which} is sent again" if problem is None else f"; {which} {problem}"

    def _may_have_paid(self, site: str) -> bool:
        """Did a task end, at a site that pays for jobs, without an answer of the site's own?"""
        if not self._keeps(site):
            return False
        # A task that the SuperLink did not take the second time is still the task that was paid for the first time.
        refused = site in self._again and self._error(site, [NOT_TAKEN])
        return site in self._absent or refused or self._error(site, CLIENT_LOST)

    def _keeps(self, site: str) -> bool:
        """Are this site's lost tasks sent again?"""
        return site in self.roster.paying and self._terms.config.server.late == "weighted"

    def lost_scores(self, site: str) -> bool:
        """Were scores that a site may have paid for lost with its client?"""
        return site in self.roster.paying and self._error(site, CLIENT_LOST)

    def _error(self, site: str, codes: Container[int]) -> bool:
        """Did the latest exchange bring one of these errors for a site?"""
        error = None if self._grid is None else self._grid.failed.get(self.roster.nodes[site])
        return error is not None and error.code in codes

    def _now(self) -> float:
        return time.monotonic() if self._grid is None else self._grid.now()

    def give_up(self, site: str) -> None:
        """Its task is not waited for any more."""
        self.open.close(site)
        if self._grid is not None:
            self._grid.forget([self.roster.nodes[site]])

    def failures(self, sites: Iterable[str]) -> dict[str, str]:
        """Why these sites gave no reply; they are sent the setup again next time."""
        errors = {} if self._grid is None else self._grid.failed
        reasons: dict[str, str] = {}
        for site in sites:
            error = errors.get(self.roster.nodes[site])
            reasons[site] = "no reply" if error is None else f"{error.reason or 'error'} (code {error.code})"
            self.post.has_setup.discard(site)
            if self._terms.language is not None:
                self._terms.language.exchange.lost(site)
        return reasons
