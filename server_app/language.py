"""The server's part of the language model: offer, tasks, averages, alignment, scores; one object for a run.

Before the query: the base model is loaded, cut, and written where sites can fetch it. After it: how rows read is fixed,
the compressed model is aligned on public text (before the query where its states are the rows' numbers). In a round
that trains the adapter each site gets it (and the emulator where it does not hold it); what comes back is checked
apart from the QNN's part, so one may count without the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.data.encodings import number_names
from llm_qfl.federation.data.sums import FeatureSums
from llm_qfl.federation.data.text import TextPlan
from llm_qfl.federation.errors import DataError, LanguageError
from llm_qfl.federation.records import Census, ModelOffer
from llm_qfl.federation.settings import default_folder, project_folder
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Array
from server_app.checkpoint import Arrays, Json, LanguageMemory
from server_app.language_rounds import AdapterRounds
from server_app.language_scores import LanguageScores, RouteScores, Texts, server_texts

if TYPE_CHECKING:
    from llm_qfl.language.batches import TokenRows
    from llm_qfl.language.server import ServerLanguage
    from llm_qfl.language.task import TaskView

NEEDED = ("torch", "transformers", "peft", "safetensors")
LIBRARIES = ("torch", "transformers")

OWN = "own/"  # arrays of the sites' own adapters in a checkpoint

Note = Callable[[str], None]


@dataclass
class Timing:
    """Seconds of the server's own work."""

    load: float = 0.0
    export: float = 0.0
    align: float = 0.0
    score: float = 0.0
    calibrate: float = 0.0


def compressed_models() -> Path:
    """Where compressed models lie, each in a folder named by its SHA-256: what `language.models-url` offers."""
    return default_folder() / "models" / "compressed"


def open_language(
    config: RunConfig, run: str, note: Note = lambda text: None, before: LanguageMemory | None = None
) -> LanguageSession | None:
    """Load, cut and write the model; None where the run has none.

    Args:
        config: the run config.
        run: the run's id.
        note: is told what takes long.
        before: what the model was when the run was interrupted.

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
    return LanguageSession(config, run, compressed_models(), note, before)


class LanguageSession:
    """The language model of one run, on the server.

    Args:
        config: the run config.
        run: the run's id.
        models: folder of the compressed models.
        note: is told what takes long.
        before: what the model was when the run was interrupted; None begins a new run.
    """

    def __init__(
        self, config: RunConfig, run: str, models: Path, note: Note, before: LanguageMemory | None = None
    ) -> None:
        from llm_qfl.language.models import load_base
        from llm_qfl.language.server import ServerLanguage

        self.config, self._run, self.timing, self.note = config, run, Timing(), note
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
        self.class_bias: dict[str, float] = {}  # of the final adapter on the full model
        self.exchange = AdapterRounds(self)
        self.found: dict[str, dict[str, RouteScores]] = {"test": {}, "validation": {}}
        """Scores of the final adapter by part and route."""
        self._before = before
        if before is not None:
            self._remember(before)
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
    def public_texts(self) -> tuple[str, ...]:
        """Public texts that the run aligns on."""
        return self._texts

    @property
    def public_digest(self) -> str:
        """SHA-256 of the public texts."""
        from llm_qfl.language.public import digest

        return digest(self._texts)

    def offer(self) -> ModelOffer:
        """What the query says of the model."""
        sent = self.server.broadcast(emulator=True, first=True) if self.makes_features else None
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

    def memory(self) -> Json:
        """What has become of the model so far, but for its numbers."""
        return {
            "exchange": self.exchange.memory(),
            "align_losses": list(self.align_losses),
            "timing": dict(vars(self.timing)),
            "own": sorted(self.exchange.own),
        }

    def memory_arrays(self) -> Arrays:
        """The numbers that change in a run: adapter, emulator, and the sites' own adapters."""
        own = [self.exchange.own[site] for site in sorted(self.exchange.own)]
        named = {f"{OWN}{number}/{key}": value for number, values in enumerate(own) for key, value in values.items()}
        return {**self.server.state(), **named}

    def _remember(self, before: LanguageMemory) -> None:
        """Go on after `memory`."""
        data = before.document
        try:
            self.align_losses = [float(loss) for loss in data["align_losses"]]
            again, self.timing = self.timing, Timing(**data["timing"])
            self.timing.load, self.timing.export = self.timing.load + again.load, self.timing.export + again.export
            self.exchange.remember(data["exchange"])
            for number, site in enumerate(data["own"]):
                prefix = f"{OWN}{number}/"
                mine = {k.removeprefix(prefix): v for k, v in before.arrays.items() if k.startswith(prefix)}
                self.exchange.own[str(site)] = mine
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LanguageError(
                f"checkpoint: what the language model has done cannot be read ({type(error).__name__}: {error}); start "
                "the run anew"
            ) from error
        self.server.load_state({k: v for k, v in before.arrays.items() if not k.startswith(OWN)})

    def _align(self, public: TokenRows, server_round: int) -> tuple[float, float | None]:
        """Align on public rows; seconds, and the loss of the last step."""
        self._public = public
        if self._before is not None and server_round == 0:
            return 0.0, None  # done before the run was interrupted
        started = time.monotonic()
        report = self.server.align(public, server_round)
        seconds = time.monotonic() - started
        self.timing.align += seconds
        losses = [] if report is None else report.boundary_losses
        if losses:
            once = "" if self._language.align_every else "; once, as in fedot (language.align-every=0)"
            self.note(
                f"compressed model aligned on {len(public)} public texts: {len(losses)} steps in {seconds:.0f} s, "
                f"boundary loss {losses[0]:.3f} to {losses[-1]:.3f}{once}"
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
            self.exchange.hold(self.sites, self.server.first_digest)
        view = self.view = TaskView.of(setup.text, self._language, self.server.base.tokenizer)
        if view.words is None:
            answer = None if self.config.data.answer_column == "none" else ("text",)
            view.training(("text",), np.zeros(1, np.intp), answer)  # a request that cannot be written is found here
        if not self._texts:
            self._texts = self._public_texts(setup.text)
        held = server_texts(self.config, setup)
        _apart(self._texts, held)
        if self._public is None:
            self._align(self.public_rows(view), 0)
        self.scores = LanguageScores(self.server, view, self._texts, held)

    def public_rows(self, view: TaskView, *, answered: bool = False) -> TokenRows:
        """The public texts to align on, or (`answered`) to calibrate on."""
        instructions = self.config.data.answer_column != "none"
        make = view.calibration_rows if answered else view.public
        return make(self._texts, seed=self._seed, instructions=instructions)

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

    def after(self, server_round: int) -> tuple[float | None, float | None]:
        """Alignment between rounds."""
        done = self.rounds.index(server_round) + 1
        if done == len(self.rounds):
            return None, None
        if not self._language.realigns or done % self._language.align_every or self._public is None:
            return None, None
        return self._align(self._public, server_round)


def _apart(public: Sequence[str], held: Texts) -> None:
    """Public text is read in alignment and for the class prior: none of it may be scored.

    Raises:
        DataError: where some is.
    """
    known = {" ".join(text.split()) for text in public}
    for part, (texts, _, _) in held.items():
        if both := sum(" ".join(text.split()) in known for text in texts):
            raise DataError(
                f"language.public: {both} of the server's {len(texts)} {part} rows are public texts, too; name a file "
                "without them, or language.public=embedded"
            )


def _model_name(name: str) -> str:
    """Relative folders start at the project."""
    return str(project_folder() / name) if name.startswith(".") else name
