"""Which site still works on what: unanswered train tasks, and late replies that wait for the next average.

A task outlives its round (`server.patience`), so the state it was sent with is kept until the site has answered or
is lost. A site has at most one open task: what is kept is bounded by the number of sites, and states of one round are
shared.

A task may be lost with the process that worked on it. Where jobs may have been paid for it, it is kept and sent again
as it was: only the same task leads the site to the jobs in its ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from flwr.app import Message

from llm_qfl.federation.aggregation import Late
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records import decode_report
from llm_qfl.federation.types import ClientReport, GlobalState, RoundPlan

RESENDS = 3  # of one task, after its first sending


@dataclass(frozen=True, eq=False)
class Given:
    """A task that a site has not answered.

    Attributes:
        state: from which it starts; names the round.
        plan: of its round.
        until: when it ends, whatever happens; seconds on the caller's clock.
        sendings: how often it was sent.
        lost: nobody works on it any more; it waits to be sent again.
    """

    state: GlobalState
    plan: RoundPlan
    until: float
    sendings: int = 1
    lost: bool = False

    @property
    def server_round(self) -> int:
        """Of the task."""
        return self.state.server_round


@dataclass(frozen=True, eq=False)
class Accepted:
    """What the replies of one exchange hold; each tuple sorted by site.

    Attributes:
        reports: answers to this round's tasks.
        late: answers to tasks of earlier rounds; `server_round` says of which.
        rejected: site -> why its reply cannot count.
    """

    reports: tuple[ClientReport, ...]
    late: tuple[ClientReport, ...]
    rejected: Mapping[str, str]


class Outstanding:
    """The open tasks of a run.

    Args:
        sites: node id -> site.
        classes: number of classes, the length of each count by class.
        staleness: factor by which a late reply's weight falls with each round.
    """

    def __init__(self, sites: Mapping[int, str], classes: int, staleness: float) -> None:
        self._sites, self._classes, self._staleness = sites, classes, staleness
        self._open: dict[str, Given] = {}
        self._held: list[tuple[ClientReport, GlobalState]] = []

    @property
    def busy(self) -> dict[str, int]:
        """Site -> round of the task that it has and has not answered, sorted by site."""
        return {site: task.server_round for site, task in self.working.items()}

    @property
    def working(self) -> dict[str, Given]:
        """Site -> the task that it has and has not answered, sorted by site."""
        return {site: task for site, task in sorted(self._open.items()) if not task.lost}

    @property
    def lost(self) -> dict[str, Given]:
        """Site -> its task that shall be sent again, sorted by site."""
        return {site: task for site, task in sorted(self._open.items()) if task.lost}

    def give(self, site: str, task: Given) -> None:
        """A site is sent a task."""
        self._open[site] = task

    def lose(self, site: str, now: float) -> str | None:
        """A site's task was lost on the way: keep it to be sent again.

        Args:
            site: whose.
            now: on the clock of `Given.until`.

        Returns:
            Why it is not sent again and the task is closed; None where it is.
        """
        task = self._open[site]
        if task.sendings > RESENDS:
            problem = f"given up after {task.sendings} sendings"
        elif now >= task.until:
            problem = "given up: server.patience is over"
        else:
            self._open[site] = replace(task, lost=True)
            return None
        self.close(site)
        return problem

    def again(self, site: str) -> Given:
        """A lost task goes to its site once more."""
        self._open[site] = task = replace(self._open[site], sendings=self._open[site].sendings + 1, lost=False)
        return task

    def close(self, site: str) -> None:
        """A site's task will not be answered any more."""
        self._open.pop(site, None)

    def accept(self, replies: Iterable[Message], server_round: int, *, hold: bool) -> Accepted:
        """Decode each reply on its own, against the state of its own round.

        Args:
            replies: in any order; sorted by site here, so that the order of arrival changes no bit.
            server_round: the round that is being closed.
            hold: whether late reports shall enter an average.
        """
        reports: dict[str, tuple[ClientReport, GlobalState]] = {}
        rejected: dict[str, str] = {}
        for reply in replies:
            site = self._sites.get(reply.metadata.src_node_id)
            if site is None or reply.has_error():
                continue  # a stranger, or counted as a failure by the caller
            if site in reports or site in rejected:
                rejected[site] = "answered twice"
                reports.pop(site, None)
                continue
            task = self._open.pop(site, None)
            if task is None:
                rejected[site] = "answered a task that is not open"
                continue
            sent = task.state
            try:
                report = decode_report(reply.content, site=site, sent=sent, classes=self._classes)
            except RecordError as error:
                which = "" if sent.server_round == server_round else f"late reply to round {sent.server_round}: "
                rejected[site] = f"{which}{type(error).__name__}: {error}"
            else:
                reports[site] = (report, sent)
        ordered = [reports[site] for site in sorted(reports)]
        behind = [pair for pair in ordered if pair[0].server_round != server_round]
        if hold:
            self._held += behind
        in_time = tuple(report for report, _ in ordered if report.server_round == server_round)
        return Accepted(in_time, tuple(report for report, _ in behind), rejected)

    def due(self, server_round: int) -> tuple[Late, ...]:
        """The late reports that enter the average of this round, with their staleness factors."""
        ordered = sorted(self._held, key=lambda pair: (pair[0].site, pair[0].server_round))
        return tuple(
            Late(report, sent, self._staleness ** (server_round - report.server_round)) for report, sent in ordered
        )

    def entered(self) -> None:
        """The average of what was due is made."""
        self._held.clear()
