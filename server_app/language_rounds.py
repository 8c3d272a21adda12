"""Rounds that train the adapter: what each site is sent, which answers count, what becomes of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_qfl.federation.combine import combine_updates, weight_of
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.records import LanguageTask
from llm_qfl.federation.robust import least_replies
from llm_qfl.federation.types import ClientReport, LanguageAnswer, LanguageRound, Scores, UpdateStats
from server_app.evaluation import pool
from server_app.privacy import CentralNoise

if TYPE_CHECKING:
    from llm_qfl.language.server import Broadcast
    from server_app.language import LanguageSession

Matrices = dict[str, np.ndarray[Any, Any]]


@dataclass
class Sent:
    """One open round that trains the adapter."""

    index: int
    broadcast: Broadcast
    asked: list[str] = field(default_factory=list)


class AdapterRounds:
    """The adapter's way to the sites and back.

    Args:
        session: the language model of the run.
    """

    def __init__(self, session: LanguageSession) -> None:
        self._session, self._language = session, session.config.language.effective()
        private = session.config.privacy.unit == "client-central"
        self._noise = CentralNoise(session.config) if private else None
        self._open: dict[int, Sent] = {}
        self._holds: set[tuple[str, str]] = set()  # (site, digest of the emulator that it holds)
        self._version = 0  # of the adapter: how often it was averaged
        self._taught: dict[str, int] = {}  # site -> version that its L_i and its soft labels are of
        self._counted: dict[str, int] = {}  # site -> round of its last answer that entered an average
        self._scoring: dict[str, tuple[int, str]] = {}  # site -> version and emulator that it was sent to score
        self.own: dict[str, Matrices] = {}
        """The sites' adapters, where nothing is averaged."""
        self.bytes_up = self.bytes_down = 0
        """Of the language parts of tasks and answers."""
        self._down_before = 0
        self.client_peak: int | None = None
        """Most memory of any site's training."""

    @property
    def tuned(self) -> bool:
        """Has any answer counted, so that there is an adapter that somebody trained?"""
        return self._version > 0 or bool(self.own)

    def hold(self, sites: Sequence[str], emulator_digest: str) -> None:
        """These sites have this emulator."""
        self._holds |= {(site, emulator_digest) for site in sites}

    def open_round(self, server_round: int) -> None:
        """A round begins; tasks of earlier rounds that are sent again go without the model."""
        self._down_before = self.bytes_down
        self._open.clear()
        if server_round in self._session.rounds and self._session.trainers:
            index = self._session.rounds.index(server_round)
            self._open[server_round] = Sent(index, self._session.server.broadcast(emulator=True))

    def task(self, site: str, server_round: int, *, final: bool = False) -> LanguageTask | None:
        """What a site is sent of the model with its task.

        Args:
            site: the site.
            server_round: round of the task.
            final: the task asks for the scores of the final model.
        """
        if site not in self._session.sites:
            return None
        opened = None if final else self._open.get(server_round)
        train = opened is not None and site in self._session.trainers
        teach = not (train or final) and self._lacks(site)
        if not (train or final or teach or self._session.makes_features):
            return None
        sent = opened.broadcast if opened is not None else self._session.server.broadcast(emulator=True)
        holds = (site, sent.emulator_digest) in self._holds or not sent.emulator_digest
        arrays = {k: v for k, v in sent.arrays.items() if not (holds and k.startswith("emulator/"))}
        if self._needs_first(site, sent):
            holds, arrays = False, {**arrays, **self._session.server.first_arrays()}
        if opened is not None and train:
            opened.asked.append(site)
            self._scoring.pop(site, None)
        if teach:
            self._scoring[site] = (self._version, sent.emulator_digest)
        steps = self._language.steps
        return LanguageTask(
            self._session.source,
            self._session.exported.sha256,
            self._session.libraries,
            arrays if train or final or teach or not holds else {},
            sent.adapter_digest,
            sent.emulator_digest,
            sent.first_digest,
            train=train,
            score=final,
            offset=opened.index * steps if opened is not None else 0,
            total=len(self._session.rounds) * steps,
            teach=teach,
            kept=self._counted.get(site, 0),
        )

    def _needs_first(self, site: str, sent: Broadcast) -> bool:
        """Are features made by an emulator that this site lost, and that is not the one it is sent?"""
        first = sent.first_digest
        return self._session.makes_features and first != sent.emulator_digest and (site, first) not in self._holds

    def _lacks(self, site: str) -> bool:
        """Does a rule or the policy need this site's L_i, and is there none of the adapter's version?

        Sites that are chosen for the first time between two rounds that train the adapter: they score it as it is,
        once a version.
        """
        return self._session.config.agent.regulates and self._taught.get(site) != self._version

    def memory(self) -> dict[str, Any]:
        """Which sites' losses are of which version, whose answers counted last, who holds which emulator."""
        return {
            "version": self._version,
            "taught": dict(self._taught),
            "counted": dict(self._counted),
            "holds": sorted(self._holds),
            "bytes": [self.bytes_up, self.bytes_down],
            "client_peak": self.client_peak,
        }

    def remember(self, data: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._version = int(data["version"])
        self._taught = {str(site): int(version) for site, version in data["taught"].items()}
        self._counted = {str(site): int(number) for site, number in data["counted"].items()}
        self._holds = {(str(site), str(digest)) for site, digest in data["holds"]}
        self.bytes_up, self.bytes_down = (int(size) for size in data["bytes"])
        self.client_peak = None if data["client_peak"] is None else int(data["client_peak"])

    def was_sent(self, size: int) -> None:
        """Count the bytes of a language part that went down."""
        self.bytes_down += size

    def lost(self, site: str) -> None:
        """A site gave no answer, or none that counts: it is sent the emulator again."""
        self._holds = {pair for pair in self._holds if pair[0] != site}

    def close_round(
        self, server_round: int, reports: Sequence[ClientReport], late: Sequence[ClientReport]
    ) -> LanguageRound | None:
        """Average what counts, align again where it is time, score where there are rows.

        Args:
            server_round: the round.
            reports: accepted replies in time, sorted by site.
            late: accepted replies to earlier rounds; their language part is dropped.

        Returns:
            None where nothing was trained, scored or dropped.
        """
        if self._session.makes_features:  # a QNN that was trained had its features
            self.hold([report.site for report in reports], self._session.server.first_digest)
        taught, failed = self._scored((*reports, *late))
        dropped = tuple(
            report.site
            for report in late
            if report.language is not None or (report.language_problem and report.site not in failed)
        )
        up = sum(r.language.bytes_up for r in (*reports, *late) if r.language is not None)
        self.bytes_up += up
        opened = self._open.get(server_round)
        if opened is None and not (dropped or taught or failed):
            return None
        asked = opened.asked if opened is not None else []
        answers, arrays, rejected = self._accepted(opened, reports)
        server = self._session.config.server
        least = max(math.ceil(server.quorum * len(asked)), least_replies(server.aggregation), 1)
        enough, updates = len(answers) >= least, {}
        if enough and opened is not None:
            updates = self._average(server_round, opened, answers, arrays, reports)
            self._counted |= dict.fromkeys(answers, server_round)
        self._taught |= dict.fromkeys(answers, self._version)
        for site in set(asked) - set(answers):
            self.lost(site)
        validation, full = self._validation(server_round, answers, enough=enough)
        seconds, loss = self._session.after(server_round) if opened is not None else (None, None)
        sent = opened.broadcast if opened is not None else None
        return LanguageRound(
            sites=tuple(sorted(asked)),
            answers=answers,
            rejected={**rejected, **failed},
            dropped=dropped,
            aggregated=enough,
            validation=validation,
            full_validation=full,
            adapter_digest=sent.adapter_digest if sent is not None else "",
            emulator_digest=sent.emulator_digest if sent is not None else "",
            bytes_up=up,
            bytes_down=self.bytes_down - self._down_before,
            align_seconds=seconds,
            align_loss=loss,
            taught=taught,
            updates=updates,
        )

    def _scored(self, reports: Sequence[ClientReport]) -> tuple[dict[str, Scores], dict[str, str]]:
        """Scores of sites that were sent the adapter to score it, and why others have none; those are asked again."""
        taught: dict[str, Scores] = {}
        failed: dict[str, str] = {}
        for report in reports:
            if report.site not in self._scoring or report.language is not None:
                continue
            version, emulator = self._scoring.pop(report.site)
            if report.teacher is None:
                failed[report.site] = report.language_problem or "the reply has no language part"
            elif len(report.teacher.rows) != self._session.counts:
                failed[report.site] = (
                    f"scores: expected counts of {self._session.counts} classes, got {len(report.teacher.rows)}"
                )
            else:
                taught[report.site] = report.teacher
                self._taught[report.site] = version
                self.hold([report.site], emulator)
        for site in failed:
            self.lost(site)
        return taught, failed

    def _accepted(
        self, opened: Sent | None, reports: Sequence[ClientReport]
    ) -> tuple[dict[str, LanguageAnswer], dict[str, Matrices], dict[str, str]]:
        """Answers that count with their matrices, and why others do not."""
        answers: dict[str, LanguageAnswer] = {}
        arrays: dict[str, Matrices] = {}
        rejected: dict[str, str] = {}
        for report in reports:
            asked = opened is not None and report.site in opened.asked
            if opened is None or not asked:
                if report.language is not None:
                    rejected[report.site] = "a language part that was not asked for"
                continue
            answer = report.language
            if answer is None:
                rejected[report.site] = report.language_problem or "the reply has no language part"
                continue
            try:
                arrays[report.site] = self._checked(opened.broadcast, answer)
                answers[report.site] = answer
            except LanguageError as error:
                rejected[report.site] = str(error)
        return answers, arrays, rejected

    def _checked(self, sent: Broadcast, answer: LanguageAnswer) -> Matrices:
        """An answer's matrices, if it is one to this round's adapter.

        Raises:
            LanguageError: why not.
        """
        if answer.adapter_digest != sent.adapter_digest:
            raise LanguageError(
                f"an answer to adapter {answer.adapter_digest[:16]}, sent was {sent.adapter_digest[:16]}"
            )
        if unknown := sorted(key for key in answer.arrays if not key.startswith("adapter/")):
            raise LanguageError(f"adapter: arrays of other names: {unknown[:3]}")
        if not len(answer.received.rows) == len(answer.trained.rows) == self._session.counts:
            raise LanguageError(
                f"scores: expected counts of {self._session.counts} classes, got {len(answer.received.rows)}"
            )
        return self._session.server.receive(answer.arrays, answer.adapter_digest)

    def _average(
        self,
        server_round: int,
        opened: Sent,
        answers: Mapping[str, LanguageAnswer],
        arrays: Mapping[str, Matrices],
        reports: Sequence[ClientReport],
    ) -> dict[str, UpdateStats]:
        """The next adapter, and what each site's update was like; nothing of the latter where sites keep their own."""
        sent = opened.broadcast
        self.hold(list(answers), sent.emulator_digest)
        peaks = [answer.peak_bytes for answer in answers.values()]
        self.client_peak = max([*peaks, self.client_peak or 0])
        if not self._language.federated:
            self.own |= arrays
            return {}
        self._version += 1
        keys, server, sites = self._session.config.server, self._session.server, sorted(answers)
        rows = {report.site: report.num_examples for report in reports}
        weights = [weight_of(rows[site], keys, keys.weighting) for site in sites]
        changes = [server.change(arrays[site], sent.adapter_digest) for site in sites]
        if self._noise is not None:
            server.move(self._noise.adapter(server_round, sent.adapter_digest, changes, len(opened.asked)))
            return {}
        found, stats = combine_updates(changes, weights, keys, self._language.norm_bound)
        if keys.aggregation == "mean" and all(one.factor == 1 for one in stats):
            server.aggregate([(arrays[site], sent.adapter_digest, w) for site, w in zip(sites, weights, strict=True)])
        else:
            server.move(found)
        return dict(zip(sites, stats, strict=True))

    def _validation(
        self, server_round: int, answers: Mapping[str, LanguageAnswer], *, enough: bool
    ) -> tuple[Scores | None, Scores | None]:
        """Of the adapter that was sent, from the sites' rows; or of the new one on the server's, when it is time."""
        if self._session.scores is None or self._session.scores.validation is None:
            return pool([answers[site].received for site in sorted(answers)]), None
        done = self._session.rounds.index(server_round) + 1 if server_round in self._session.rounds else 0
        every = self._language.evaluate_every
        due = (
            done in (1, len(self._session.rounds))
            if every == 0
            else done % every == 0 or done == len(self._session.rounds)
        )
        if not (done and due and enough):
            return None, None
        started = time.monotonic()
        emu, full = (self._session.scores.on_validation(kind, self.own) for kind in ("adap-emu", "adap-fu"))
        self._session.timing.score += time.monotonic() - started
        return emu, full
