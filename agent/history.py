"""What the decisions are made from: numbers of closed rounds. No theta, no text of a site's.

A site's name is the key by which budgets and choices are kept; it never enters a state or a score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from llm_qfl.federation.types import RoundSummary

Task = tuple[int, str]  # round, site
LIE = 3.0  # of the round's median loss, or of what guessing costs: a larger loss counts as that much


@dataclass(frozen=True)
class SiteRecord:
    """One site's accepted answer. Losses are means over its validation rows, nats.

    Attributes:
        site: its name, a key and nothing else.
        examples: training rows.
        qnn_loss: F_i, of the vector that the site returned; plain cross-entropy, whatever it was trained on.
        language_loss: L_i on the same rows, or None.
        evaluations, circuits: what the round cost it.
        seconds: wall time of a site that waits for a QPU; 0 where it simulates: that time would be another in a second
            run.
        received_loss: of the vector that it was sent, where the sites' rows are the validation rows; else None.
        validation_rows: how many of them it has.
    """

    site: str
    examples: int
    qnn_loss: float
    language_loss: float | None = None
    evaluations: int = 0
    circuits: int = 0
    seconds: float = 0.0
    received_loss: float | None = None
    validation_rows: int = 0


@dataclass(frozen=True)
class RoundRecord:
    """One closed round.

    Attributes:
        server_round: from 1.
        sites: accepted answers, by name.
        asked: sites of the plan.
        server_loss: F_s, validation cross-entropy of the global model (nats), or None; where the sites validate, on
            the rows of those that answered, so rounds are compared by `History.validation`, not by this.
        language_loss: L_s, of the averaged language model on validation rows, or None.
        evaluations, circuits: all sites together, late answers included.
        bytes: likewise, of the QNN's part: the adapter's travels are no decision's choice, and would drown the rest.
        settled: tasks whose accepted answers these are, also those of earlier rounds.
    """

    server_round: int
    sites: tuple[SiteRecord, ...]
    asked: tuple[str, ...] = ()
    server_loss: float | None = None
    language_loss: float | None = None
    evaluations: int = 0
    circuits: int = 0
    bytes: int = 0
    settled: tuple[Task, ...] = ()

    def distances(self, to: str = "server") -> dict[str, float]:
        """d_i by site: |F_i - F_s|, or |F_i - L_i| with `language`; sites without the other loss are left out."""
        found: dict[str, float] = {}
        for one in self.sites:
            other = self.server_loss if to == "server" else one.language_loss
            if other is not None:
                found[one.site] = abs(one.qnn_loss - other)
        return found

    @property
    def mean_distance(self) -> float | None:
        """Mean of |F_i - F_s|."""
        found = self.distances()
        return sum(found.values()) / len(found) if found else None

    @property
    def teacher_loss(self) -> float | None:
        """L_s where the server has one, else the mean of the sites' L_i by rows."""
        if self.language_loss is not None:
            return self.language_loss
        return _mean([(one.examples, one.language_loss) for one in self.sites])


@dataclass(frozen=True)
class Teachers:
    """The language model's losses as they stand: between two rounds that train the adapter they stay what they were.

    Attributes:
        sites: L_i of the adapter that each site tuned (or, where it has not tuned this version, was sent) last, nats.
        server: L_s, of the averaged adapter, or None.
    """

    sites: Mapping[str, float] = field(default_factory=dict)
    server: float | None = None

    def after(self, summary: RoundSummary) -> Teachers:
        """With what a round brought.

        L_s is the full model's validation loss where the server has one, else the compressed model's.
        """
        sites = dict(self.sites)
        for report in summary.work:
            loss = None if report.language is None else report.language.trained.loss
            if loss is not None:
                sites[report.site] = loss
        server, beside = self.server, summary.language
        if beside is not None:
            sites |= {site: scores.loss for site, scores in beside.taught.items() if scores.loss is not None}
        for scores in () if beside is None else (beside.validation, beside.full_validation):
            server = server if scores is None or scores.loss is None else scores.loss
        return Teachers(sites, server)


def record_of(
    summary: RoundSummary,
    language: Mapping[str, float | None],
    server_language: float | None = None,
    *,
    federated: bool = False,
) -> RoundRecord:
    """A closed round in numbers.

    Losses that are not finite are left out, and large ones clipped, so that one site cannot drive the others' budgets.
    F_i, L_i and the sites' validation losses are clipped alike, each by its own median; where the sites validate, F_s
    is the mean of the clipped ones.

    Args:
        summary: the round.
        language: L_i by site, nats, on the rows of F_i; a site that is missing has none.
        server_language: L_s, nats, or None.
        federated: are the sites' rows the validation rows?
    """
    kept = [(report, report.trained.loss) for report in sorted(summary.reports, key=lambda report: report.site)]
    guess = max((math.log(len(report.trained.rows)) for report, _ in kept), default=0.0)
    losses = clipped({report.site: loss for report, loss in kept if loss is not None}, guess)
    given = ((report.site, language.get(report.site)) for report, _ in kept)
    teachers = clipped({site: loss for site, loss in given if loss is not None}, guess)
    scored = ((report.site, report.received.loss) for report, _ in kept if federated)
    received = clipped({site: loss for site, loss in scored if loss is not None}, guess)
    sites = tuple(
        SiteRecord(
            report.site,
            report.num_examples,
            losses[report.site],
            teachers.get(report.site),
            report.spent.evaluations,
            report.spent.circuits,
            report.seconds if report.spent.jobs else 0.0,
            received.get(report.site),
            report.received.count if report.site in received else 0,
        )
        for report, _ in kept
        if report.site in losses
    )
    if federated:
        pooled = _mean([(one.validation_rows, one.received_loss) for one in sites])
    else:
        pooled = None if summary.validation is None else summary.validation.loss
    beside = 0 if summary.language is None else summary.language.bytes_up + summary.language.bytes_down
    return RoundRecord(
        server_round=summary.server_round,
        sites=sites,
        asked=summary.plan.sites,
        server_loss=_finite(pooled),
        language_loss=_finite(server_language),
        evaluations=sum(report.spent.evaluations for report in summary.work),
        circuits=sum(report.spent.circuits for report in summary.work),
        bytes=max(summary.bytes_up + summary.bytes_down - beside, 0),
        settled=tuple(sorted((report.server_round, report.site) for report in summary.work)),
    )


def clipped(losses: Mapping[str, float], guess: float) -> dict[str, float]:
    """Losses within [0, 3 times the median or, if that is more, 3 times the guess]; those that are not finite are gone.

    The median alone would not do: where most sites hold one class their losses are next to nothing, and a site whose
    rows are hard would count as a liar.

    Args:
        losses: by site, nats.
        guess: what guessing costs, ln C, nats.
    """
    finite = {site: loss for site, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        return {}
    most = LIE * max(median(finite.values()), guess)
    return {site: min(max(loss, 0.0), most) for site, loss in finite.items()}


def _mean(losses: Iterable[tuple[int, float | None]]) -> float | None:
    """Mean loss over rows, of those that are known; None without any."""
    known = [(rows, loss) for rows, loss in losses if loss is not None]
    total = sum(rows for rows, _ in known)
    return sum(rows * loss for rows, loss in known) / total if total else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Known:
    """The last that is known of a site: its answer and the round it came in."""

    record: SiteRecord
    server_round: int
    distance: float | None
    """To the server when it answered: F_s of later rounds says nothing about it."""
    language_distance: float | None
    """|F_i - L_i|, likewise."""


def slowness(known: Mapping[str, Known]) -> dict[str, float]:
    """Seconds of each site's last answer as a share of the median of those that wait for a QPU; 1 for all others."""
    seconds = {site: one.record.seconds for site, one in known.items()}
    waited = [value for value in seconds.values() if value > 0]
    usual = median(waited) if waited else 1.0
    return {site: value / usual if value > 0 else 1.0 for site, value in seconds.items()}


@dataclass(frozen=True)
class History:
    """Closed rounds, oldest first."""

    rounds: tuple[RoundRecord, ...] = ()

    def then(self, record: RoundRecord) -> History:
        """With one more round."""
        return History((*self.rounds, record))

    def known(self) -> dict[str, Known]:
        """The last answer of every site that gave one."""
        found: dict[str, Known] = {}
        for record in self.rounds:
            near, teacher = record.distances("server"), record.distances("language")
            for one in record.sites:
                found[one.site] = Known(one, record.server_round, near.get(one.site), teacher.get(one.site))
        return found

    def last_asked(self) -> dict[str, int]:
        """The last round that every site was asked in."""
        return {site: record.server_round for record in self.rounds for site in record.asked}

    def validation(self) -> tuple[float | None, ...]:
        """Validation loss (nats) of each round, comparable from round to round; None where nothing was scored.

        The server's own, or, where the sites validate, the mean over the rows of *every* site that has answered so
        far: a site that sat a round out counts with its last loss, before its first answer with its first one.
        Without that, a round of two easy sites would look like progress and one of two hard sites like a regression.
        """
        rows = {one.site: one.validation_rows for record in self.rounds for one in record.sites if one.validation_rows}
        if not rows:
            return tuple(record.server_loss for record in self.rounds)
        scored = [
            {one.site: one.received_loss for one in record.sites if one.received_loss is not None}
            for record in self.rounds
        ]
        current: dict[str, float] = {}
        for losses in reversed(scored):
            current |= losses  # ends with every site's first
        found: list[float | None] = []
        for losses in scored:
            current |= losses
            mean = sum(rows[site] * loss for site, loss in current.items()) / sum(rows[site] for site in current)
            found.append(mean if losses else None)
        return tuple(found)

    def comparable(self) -> tuple[float, ...]:
        """Of `losses` those that a later one may be held against, oldest first.

        A mean that holds stale losses of sites that sat out is an estimate; a round in which every known site answered
        says what is. From such a round on the estimates before it count no more.
        """
        known = {one.site for record in self.rounds for one in record.sites if one.validation_rows}
        told = [
            (loss, known <= {one.site for one in record.sites if one.received_loss is not None})
            for record, loss in zip(self.rounds, self.validation(), strict=True)
            if loss is not None
        ]
        last = max((number for number, (_, fresh) in enumerate(told) if fresh), default=0)
        return tuple(loss for number, (loss, fresh) in enumerate(told) if fresh or number >= last)

    def losses(self) -> tuple[float, ...]:
        """Of `validation` what is known, oldest first."""
        return tuple(loss for loss in self.validation() if loss is not None)

    @property
    def evaluations(self) -> int:
        """Objective evaluations so far, all sites."""
        return sum(record.evaluations for record in self.rounds)
