"""Which site still works on what: unanswered train tasks, and late replies that wait for the next average.

A task outlives its round (`server.patience`), so the state it was sent with is kept until the site has answered or
is lost. A site has at most one open task: what is kept is bounded by the number of sites, and states of one round are
shared.

A task may be lost with the process that worked on it. Where jobs may have been paid for it, it is kept and sent again
as it was: only the same task leads the site to the jobs in its ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, Message, RecordDict

from llm_qfl.federation.aggregation import Late
from llm_qfl.federation.errors import RecordError
from llm_qfl.federation.records import decode_report
from llm_qfl.federation.types import ClientReport, GlobalState, RoundPlan

RESENDS = 3  # of one task, after its first sending
LONGEST = 500  # letters of a reason: it may quote what a stranger sent

Held = tuple[ClientReport, GlobalState]
Check = Callable[[str, RecordDict, ClientReport, GlobalState, RoundPlan], ClientReport]


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
        check: holds what a reply claims against what is known (`Claims.check`); None takes it as it is.
    """

    def __init__(self, sites: Mapping[int, str], classes: int, staleness: float, check: Check | None = None) -> None:
        self._sites, self._classes, self._staleness, self._check = sites, classes, staleness, check
        self._open: dict[str, Given] = {}
        self._held: list[tuple[ClientReport, GlobalState]] = []

    def memory(self) -> tuple[dict[str, Given], tuple[Held, ...]]:
        """Open tasks by site, and late reports that wait for the next average with the states they answer to."""
        return dict(self._open), tuple(self._held)

    def remember(self, given: Mapping[str, Given], held: Iterable[Held]) -> None:
        """Go on after `memory`."""
        self._open, self._held = dict(given), list(held)

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

        A reply that cannot count does not take a good one with it, whichever came first; of equal good ones the first
        counts; a site that gives two different good answers has given none.

        Args:
            replies: in any order; sorted by site here, so that the order of arrival changes no bit.
            server_round: the round that is being closed.
            hold: whether late reports shall enter an average.
        """
        contents: dict[str, list[RecordDict]] = {}
        for reply in replies:
            site = self._sites.get(reply.metadata.src_node_id)
            if site is None or reply.has_error():
                continue  # a stranger, or counted as a failure by the caller
            contents.setdefault(site, []).append(reply.content)
        ordered: list[tuple[ClientReport, GlobalState]] = []
        rejected: dict[str, str] = {}
        for site in sorted(contents):
            task = self._open.pop(site, None)
            if task is None:
                rejected[site] = "answered a task that is not open"
                continue
            report, problem = self._read(site, contents[site], task)
            if problem:
                which = "" if task.server_round == server_round else f"late reply to round {task.server_round}: "
                rejected[site] = f"{which}{problem}"
            if report is not None:
                ordered.append((report, task.state))
        behind = [pair for pair in ordered if pair[0].server_round != server_round]
        if hold:
            self._held += behind
        in_time = tuple(report for report, _ in ordered if report.server_round == server_round)
        return Accepted(in_time, tuple(report for report, _ in behind), rejected)

    def _read(self, site: str, contents: Iterable[RecordDict], task: Given) -> tuple[ClientReport | None, str]:
        """The one good answer among a site's replies, if there is one, and what is wrong with the others."""
        good: dict[str, ClientReport] = {}
        wrong: list[str] = []
        for content in contents:
            try:
                report = decode_report(content, site=site, sent=task.state, classes=self._classes)
                if self._check is not None:
                    report = self._check(site, content, report, task.state, task.plan)
            except RecordError as error:
                wrong.append(f"{type(error).__name__}: {error}")
            else:
                good[_digest(content)] = report
        if len(good) > 1:
            return None, "answered twice"
        listing = sorted(set(wrong))
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        problem = listing[0][:LONGEST] + more if listing else ""
        if not good:
            return None, problem
        (report,) = good.values()
        return report, f"beside one that counts: {problem}" if problem else ""

    def due(self, server_round: int) -> tuple[Late, ...]:
        """The late reports that enter the average of this round, with their staleness factors."""
        ordered = sorted(self._held, key=lambda pair: (pair[0].site, pair[0].server_round))
        return tuple(
            Late(report, sent, self._staleness ** (server_round - report.server_round)) for report, sent in ordered
        )

    def entered(self) -> None:
        """The average of what was due is made."""
        self._held.clear()


def _digest(content: RecordDict) -> str:
    """Tells different contents of equal form apart, by every byte."""
    total = hashlib.sha256()
    for name in sorted(content):
        record = content[name]
        total.update(name.encode())
        if isinstance(record, ArrayRecord):
            for key in sorted(record):
                total.update(key.encode() + record[key].data)
        else:
            total.update(record.deflate())
    return total.hexdigest()
