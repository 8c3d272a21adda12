"""The server's part of the language model: offer, tasks, averages, alignment, scores; one object for a run.

Before the query: the base model is loaded, cut, and written where sites can fetch it. After it: how rows read is fixed,
the compressed model is aligned on public text (before the query where its states are the rows' numbers). In a round
that trains the adapter each site gets it (and the emulator where it does not hold it); what comes back is checked
apart from the QNN's part, so one may count without the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.encodings import number_names
from llm_qfl.federation.data.sums import FeatureSums
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.records import Census, Evaluation, LanguageTask, ModelOffer
from llm_qfl.federation.settings import default_folder, project_folder
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Array, ClientReport, LanguageAnswer, LanguageRound, Scores
from server_app.evaluation import pool
from server_app.language_scores import LanguageScores, RouteScores, server_texts

if TYPE_CHECKING:
    from llm_qfl.language.batches import TokenRows
    from llm_qfl.language.server import Broadcast, ServerLanguage
    from llm_qfl.language.task import TaskView

NEEDED = ("torch", "transformers", "peft", "safetensors")
LIBRARIES = ("torch", "transformers")

Note = Callable[[str], None]


@dataclass
class Timing:
    """Seconds of the server's own work."""

    load: float = 0.0
    export: float = 0.0
    align: float = 0.0
    score: float = 0.0
    calibrate: float = 0.0


@dataclass
class Sent:
    """One open round that trains the adapter."""

    index: int
    broadcast: Broadcast
    asked: list[str] = field(default_factory=list)


def compressed_models() -> Path:
    """Where compressed models lie, each in a folder named by its SHA-256: what `language.models-url` offers."""
    return default_folder() / "models" / "compressed"


def open_language(config: RunConfig, run: str, note: Note = lambda text: None) -> LanguageSession | None:
    """Load, cut and write the model; None where the run has none.

    Args:
        config: the run config.
        run: the run's id.
        note: is told what takes long.

    Raises:
        LanguageError: packages are missing, or the model cannot be had, cut or written.
        ConfigError, DataError: the public text cannot be had.
    """
    if not config.language.enabled:
        return None
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise LanguageError(
            f"language.model: {config.language.model!r} needs {', '.join(missing)}, which is not installed; run `make "
            "install`, `pip install 'llm-qfl[language]'`, or set language.model=\"none\""
        )
    return LanguageSession(config, run, compressed_models(), note)


class LanguageSession:
    """The language model of one run, on the server.

    Args:
        config: the run config.
        run: the run's id.
        models: folder of the compressed models.
        note: is told what takes long.
    """

    def __init__(self, config: RunConfig, run: str, models: Path, note: Note) -> None:
        from llm_qfl.language.models import load_base
        from llm_qfl.language.server import ServerLanguage

        self.config, self._run, self.timing, self._note = config, run, Timing(), note
        self._language, self._seed = config.language.effective(), config.server.seed
        started = time.monotonic()
        base = load_base(_model_name(config.language.model), default_folder() / "models")
        self.server: ServerLanguage = ServerLanguage(base, config.language, seed=self._seed)
        self.timing.load = time.monotonic() - started
        if config.language.compresses and not self.server.plan.kept:
            raise LanguageError(
                f"language.adapter-layers: {self._language.adapter_layers} of the {self.server.plan.n} layers of "
                f"{config.language.model!r} leave none to compress; lower it, or take a method that compresses nothing"
            )
        positions = int(getattr(self.server.stack.config, "max_position_embeddings", self._language.max_tokens))
        if self._language.max_tokens > positions:
            raise LanguageError(
                f"language.max-tokens: {config.language.model!r} has {positions} positions, got "
                f"{self._language.max_tokens}"
            )
        started = time.monotonic()
        self.exported = self.server.export(models)
        self.timing.export = time.monotonic() - started
        plan = self.server.plan
        note(
            f"language model {config.language.model}: loaded in {self.timing.load:.1f} s; sites get "
            f"{len(plan.held)} of its {plan.n} layers ({self.exported.size / 1e6:.0f} MB) and tune {plan.a}"
        )
        url = config.language.models_url
        folder = str(self.exported.folder.resolve())
        self.source = folder if url == "none" else f"{url.rstrip('/')}/{self.exported.sha256}"
        self.libraries = {name: version(name).split("+")[0] for name in LIBRARIES}
        self._public: TokenRows | None = None
        self._texts: tuple[str, ...] = ()
        self.align_losses: list[float] = []
        self.boundary: tuple[float, float] | None = None
        self.view: TaskView | None = None
        self.sites: tuple[str, ...] = ()
        self.left_out: dict[str, str] = {}
        self.trainers: tuple[str, ...] = ()
        self.scores: LanguageScores | None = None
        self._open: dict[int, Sent] = {}
        self._holds: set[tuple[str, str]] = set()  # (site, digest of the emulator that it holds)
        self._own: dict[str, dict[str, np.ndarray[Any, Any]]] = {}  # the sites' adapters, where nothing is averaged
        self.bytes_up = self.bytes_down = 0
        self._down_before = 0
        self.client_peak: int | None = None
        self.final: dict[str, RouteScores] = {}
        self.final_validation: dict[str, RouteScores] = {}
        if self.makes_features:
            self._align_on_features()

    # ---- before the first round -------------------------------------------------------------------------------

    @property
    def makes_features(self) -> bool:
        """Are its states the rows' numbers?"""
        return self.config.data.encoding == "language"

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds that train the adapter."""
        return tuple(range(1, self.config.server.rounds + 1, self._language.every))

    @property
    def counts(self) -> int:
        """Length of the counts in its scores; 0 before the census is closed."""
        return 0 if self.view is None else self.view.counts

    @property
    def public_count(self) -> int:
        """Public texts that were to be had."""
        return len(self._texts)

    @property
    def public_digest(self) -> str:
        """SHA-256 of the public texts."""
        from llm_qfl.language.public import digest

        return digest(self._texts)

    def offer(self) -> ModelOffer:
        """What the query says of the model."""
        sent = self.server.broadcast(emulator=True) if self.makes_features else None
        arrays, digest = ({}, "") if sent is None else (sent.arrays, sent.first_digest)
        return ModelOffer(self._run, self.source, self.exported.sha256, self.libraries, arrays, digest)

    def _align_on_features(self) -> None:
        from llm_qfl.language.task import feature_plan, feature_rows

        plan = feature_plan(self._language)
        self._texts = self._public_texts(None)
        self._align(feature_rows(plan, self._texts, self.server.base.tokenizer, self._language), 0)

    def _public_texts(self, plan: TextPlan | None) -> tuple[str, ...]:
        from llm_qfl.language.public import public_texts

        source = self._language.public
        if source.startswith("file:"):
            source = f"file:{project_folder() / Path(source.removeprefix('file:')).expanduser()}"
        return public_texts(
            source, self._language.public_rows, seed=self._seed, plan=plan, text_column=self.config.data.text_column
        )

    def _align(self, public: TokenRows, server_round: int) -> tuple[float, float | None]:
        """Align on public rows; seconds, and the loss of the last step."""
        self._public = public
        started = time.monotonic()
        report = self.server.align(public, server_round)
        seconds = time.monotonic() - started
        self.timing.align += seconds
        losses = [] if report is None else report.boundary_losses
        if losses:
            self._note(
                f"compressed model aligned on {len(public)} public texts: {len(losses)} steps in {seconds:.0f} s, "
                f"boundary loss {losses[0]:.3f} to {losses[-1]:.3f}"
            )
        self.align_losses += losses
        return seconds, losses[-1] if losses else None

    def text_plan(self, census: Census, class_names: Sequence[str], sums: FeatureSums) -> TextPlan:
        """How rows read, by the sites' columns and sums.

        Raises:
            ConfigError, LanguageError: words, template or limit do not go with the rows or the tokenizer.
        """
        from llm_qfl.language.task import text_plan

        names = number_names(census.encoding, census.columns, self.config.data.k)
        return text_plan(
            self._language, census.encoding, names, class_names, sums if names else None, self.server.base.tokenizer
        )

    def begin(self, setup: Setup, answers: Mapping[str, Census]) -> None:
        """The census is closed: who takes part, what rows are, the first alignment.

        Raises:
            LanguageError, ConfigError, DataError: before any site trains.
        """
        from llm_qfl.language.task import TaskView

        if setup.text is None:
            raise LanguageError("language model: the setup says nothing of how rows read")
        self.left_out = {site: census.language for site, census in sorted(answers.items()) if census.language}
        self.sites = tuple(sorted(set(answers) - set(self.left_out)))
        self.trainers = self.sites[:1] if self._language.one_site else self.sites
        if self.makes_features:  # a site whose rows the server has given numbers for holds the emulator
            self._holds |= {(site, self.server.broadcast(emulator=False).emulator_digest) for site in self.sites}
        view = self.view = TaskView.of(setup.text, self._language, self.server.base.tokenizer)
        if not self._texts:
            self._texts = self._public_texts(setup.text)
        if self._public is None:
            self._align(view.public(self._texts), 0)
        self.scores = LanguageScores(self.server, view, self._texts, server_texts(self.config, setup))

    def features(self, texts: Sequence[str]) -> Array:
        """Numbers of the server's own texts, as sites make them of theirs."""
        from llm_qfl.language.task import text_features

        with self.server.distributed() as route:
            return text_features(
                route,
                texts,
                self.server.base.tokenizer,
                self._language,
                self.config.data.layer,
                default_folder() / "features",
            )

    # ---- a round ----------------------------------------------------------------------------------------------

    def open_round(self, server_round: int) -> None:
        """A round begins; tasks of earlier rounds that are sent again go without the model."""
        self._down_before = self.bytes_down
        self._open.clear()
        if server_round in self.rounds and self.trainers:
            index = self.rounds.index(server_round)
            self._open[server_round] = Sent(index, self.server.broadcast(emulator=True))

    def task(self, site: str, server_round: int, *, final: bool = False) -> LanguageTask | None:
        """What a site is sent of the model with its task.

        Args:
            site: the site.
            server_round: round of the task.
            final: the task asks for the scores of the final model.
        """
        if site not in self.sites:
            return None
        opened = None if final else self._open.get(server_round)
        train = opened is not None and site in self.trainers
        if not (train or final or self.makes_features):
            return None
        sent = opened.broadcast if opened is not None else self.server.broadcast(emulator=True)
        holds = (site, sent.emulator_digest) in self._holds or not sent.emulator_digest
        arrays = {k: v for k, v in sent.arrays.items() if not (holds and k.startswith("emulator/"))}
        if opened is not None and train:
            opened.asked.append(site)
        steps = self._language.steps
        return LanguageTask(
            self.source,
            self.exported.sha256,
            self.libraries,
            arrays if train or final or not holds else {},
            sent.adapter_digest,
            sent.emulator_digest,
            sent.first_digest,
            train=train,
            score=final,
            offset=opened.index * steps if opened is not None else 0,
            total=len(self.rounds) * steps,
        )

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
            None where nothing was trained and nothing dropped.
        """
        dropped = tuple(report.site for report in late if report.language is not None or report.language_problem)
        up = sum(r.language.bytes_up for r in (*reports, *late) if r.language is not None)
        self.bytes_up += up
        opened = self._open.get(server_round)
        if opened is None and not dropped:
            return None
        asked = opened.asked if opened is not None else []
        answers, arrays, rejected = self._accepted(opened, reports)
        enough = bool(answers) and len(answers) >= math.ceil(self.config.server.quorum * len(asked))
        if enough and opened is not None:
            self._average(opened.broadcast, answers, arrays, reports)
        for site in set(asked) - set(answers):
            self.lost(site)
        validation, full = self._validation(server_round, answers, enough=enough)
        seconds, loss = self._after(server_round) if opened is not None else (None, None)
        sent = opened.broadcast if opened is not None else None
        return LanguageRound(
            sites=tuple(sorted(asked)),
            answers=answers,
            rejected=rejected,
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
        )

    def _accepted(
        self, opened: Sent | None, reports: Sequence[ClientReport]
    ) -> tuple[dict[str, LanguageAnswer], dict[str, dict[str, np.ndarray[Any, Any]]], dict[str, str]]:
        """Answers that count with their matrices, and why others do not."""
        answers: dict[str, LanguageAnswer] = {}
        arrays: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
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

    def _checked(self, sent: Broadcast, answer: LanguageAnswer) -> dict[str, np.ndarray[Any, Any]]:
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
        if not len(answer.received.rows) == len(answer.trained.rows) == self.counts:
            raise LanguageError(f"scores: expected counts of {self.counts} classes, got {len(answer.received.rows)}")
        return self.server.receive(answer.arrays, answer.adapter_digest)

    def _average(
        self,
        sent: Broadcast,
        answers: Mapping[str, LanguageAnswer],
        arrays: Mapping[str, dict[str, np.ndarray[Any, Any]]],
        reports: Sequence[ClientReport],
    ) -> None:
        self._holds |= {(site, sent.emulator_digest) for site in answers}
        peaks = [answer.peak_bytes for answer in answers.values()]
        self.client_peak = max([*peaks, self.client_peak or 0])
        if not self._language.federated:
            self._own |= arrays
            return
        by_rows = self.config.server.weighting == "examples"
        weights = {report.site: float(report.num_examples) if by_rows else 1.0 for report in reports}
        self.server.aggregate([(arrays[site], sent.adapter_digest, weights[site]) for site in sorted(answers)])

    def _validation(
        self, server_round: int, answers: Mapping[str, LanguageAnswer], *, enough: bool
    ) -> tuple[Scores | None, Scores | None]:
        """Of the adapter that was sent, from the sites' rows; or of the new one on the server's, when it is time."""
        if self.scores is None or self.scores.validation is None:
            return pool([answers[site].received for site in sorted(answers)]), None
        done = self.rounds.index(server_round) + 1 if server_round in self.rounds else 0
        every = self._language.evaluate_every
        due = done in (1, len(self.rounds)) if every == 0 else done % every == 0 or done == len(self.rounds)
        if not (done and due and enough):
            return None, None
        started = time.monotonic()
        emu, full = (self.scores.on_validation(kind, self._own) for kind in ("adap-emu", "adap-fu"))
        self.timing.score += time.monotonic() - started
        return emu, full

    def _after(self, server_round: int) -> tuple[float | None, float | None]:
        """Alignment between rounds, or the calibration after the last one."""
        done = self.rounds.index(server_round) + 1
        if done == len(self.rounds):
            self._calibrate(server_round)
            return None, None
        if not self._language.realigns or done % self._language.align_every or self._public is None:
            return None, None
        return self._align(self._public, server_round)

    def _calibrate(self, server_round: int) -> None:
        if not self._language.calibrate_steps or not self._language.federated or self.view is None:
            return
        started = time.monotonic()
        rows = self.view.calibration_rows(self._texts)
        self.server.calibrate(rows, server_round, self.view.first_tokens)
        self.timing.calibrate = time.monotonic() - started

    # ---- the end ----------------------------------------------------------------------------------------------

    def finish(self, evaluations: Sequence[Evaluation]) -> None:
        """Score the final adapter on the test rows: the server's along all routes, the sites' along their own.

        Nothing is scored where no site took part.
        """
        if self.scores is None or not self.trainers:
            return
        started = time.monotonic()
        if self.scores.parts:
            self._note(f"scoring the language model on the server's {' and '.join(self.scores.parts)} rows ...")
        for part, found in (("test", self.final), ("validation", self.final_validation)):
            here = self.scores.rows(part) is not None
            found.update(self.scores.final(part, self._own) if here else _from_sites(evaluations, part))
        self.timing.score += time.monotonic() - started

    def save(self, folder: Path, card: Mapping[str, str]) -> None:
        """Write the PEFT folder with the full model's layer numbers; nothing where the sites kept their own."""
        from llm_qfl.language.export import export_adapter

        if self._language.federated and self.trainers:
            export_adapter(folder, self.server.base, self.server.adapter, self.server.adapter_arrays(), card)


def _from_sites(evaluations: Sequence[Evaluation], part: str) -> dict[str, RouteScores]:
    found: dict[str, RouteScores] = {}
    for route in ("compressed-zero-shot", "adap-emu"):
        total = pool([one.language[route][part] for one in evaluations if route in one.language])
        if total is not None:
            found[route] = RouteScores(total, None)
    return found


def _model_name(name: str) -> str:
    """Relative folders start at the project."""
    return str(project_folder() / name) if name.startswith(".") else name
