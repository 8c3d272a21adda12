"""A site's part of the language model: one round of the adapter, scores, features of texts.

A node starts a process for every message, and in simulation one process plays many sites. So what a site keeps (the
emulator, boundary states, what rounding lost) lies on its disk, in a folder of the run and the site; the model is
loaded once a process and shared by its sites, whose modules are made anew for every task.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.common import log

from client_app.admission import FAILURES, library_problem
from client_app.data import site_texts
from llm_qfl.federation.config import RunConfig
from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.errors import FingerprintError, LanguageError, LlmQflError
from llm_qfl.federation.fingerprint import digest_of
from llm_qfl.federation.records import LanguageTask, ModelOffer
from llm_qfl.federation.seeding import seed_of
from llm_qfl.federation.settings import NodeSettings
from llm_qfl.federation.setup import Setup
from llm_qfl.federation.types import Array, Labels, LanguageAnswer, Scores

if TYPE_CHECKING:
    from client_app.privacy import Guard
    from llm_qfl.language.client import ClientLanguage
    from llm_qfl.language.compress import CompressedModel
    from llm_qfl.language.task import HeldOut, TaskView

KEPT_SECONDS = 2 * 86400.0  # a run that has not touched its folder for longer is over

_LOADED: dict[tuple[str, ...], CompressedModel] = {}  # this process's one copy of the weights, by name and numbers


@dataclass(frozen=True)
class Held:
    """Where a site keeps what belongs to one run."""

    settings: NodeSettings
    run: str
    site: str

    @property
    def run_folder(self) -> Path:
        """Of the run; the sites of one machine share it in simulation."""
        return self.settings.folder / "language" / digest_of(self.run)[:16]

    @property
    def folder(self) -> Path:
        """Of the site in the run."""
        return self.run_folder / digest_of(self.site)[:16]

    def prepare(self) -> None:
        """Make the folder, mark it as in use, and delete those of runs that are over."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(self.run_folder)
        oldest = time.time() - KEPT_SECONDS
        for other in self.run_folder.parent.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process may be at it, too
                if other != self.run_folder and other.stat().st_mtime < oldest:
                    shutil.rmtree(other, ignore_errors=True)


class SiteLanguage:
    """The language model at one site, for one message; nothing is loaded before it is needed.

    Args:
        config: the run config.
        settings: the site's own settings.
        site: the site's name.
        run: the run's id.
        part: what the message says of the model.
    """

    def __init__(
        self, config: RunConfig, settings: NodeSettings, site: str, run: str, part: LanguageTask | ModelOffer
    ) -> None:
        self._config, self._settings, self._site, self.part = config, settings, site, part
        self._language = config.language.effective()
        self._held = Held(settings, run, site)

    @property
    def first_digest(self) -> str:
        """Of the emulator as it was first distributed."""
        part = self.part
        return part.first_digest if isinstance(part, LanguageTask) else part.emulator_digest

    @cached_property
    def client(self) -> ClientLanguage:
        """The model with what the message brought.

        Raises:
            LanguageError: the model cannot be had, is another one, or lacks what was neither sent nor kept.
            FingerprintError: other versions of what computes.
        """
        from llm_qfl.language.client import ClientLanguage, share
        from llm_qfl.language.fetch import fetch_compressed

        part = self.part
        if problem := library_problem(part.libraries):
            raise FingerprintError(f"the two sides differ in {problem}; give both the same release")
        self._held.prepare()
        folder = fetch_compressed(part.source, part.sha256, self._settings.folder / "models")
        language = self._language.model_copy(update={"dtype": self._frozen_dtype(folder)})
        model = _load(folder, part.sha256, language)
        client = ClientLanguage(share(model), language, folder=self._held.folder)
        if part.arrays:
            task = isinstance(part, LanguageTask)  # else a query, perhaps of a server that goes on
            kept = part.kept if isinstance(part, LanguageTask) else 0
            adapter = part.adapter_digest if isinstance(part, LanguageTask) else ""
            client.receive(
                part.arrays, part.emulator_digest, self.first_digest, kept=kept, tidy=task, adapter_digest=adapter
            )
        return client

    def _frozen_dtype(self, folder: Path) -> str:
        """Numbers of the frozen layers, timed once a run on this machine: rounding must not change between rounds.

        On CUDA nothing is timed: `auto` is what `choose_frozen_dtype` says of the device.
        """
        from llm_qfl.language.device import DTYPES, choose_device, choose_frozen_dtype

        name = self._language.dtype
        settled = name != "auto" or self._language.quantization != "none"
        if settled or choose_device(self._language.device).type == "cuda":
            return name
        path = self._held.run_folder / "frozen-dtype"
        if not path.exists():
            plain = self._language.model_copy(update={"dtype": "float32"})
            found = choose_frozen_dtype(name, _load(folder, self.part.sha256, plain).stack)
            word = next(word for word, dtype in DTYPES.items() if dtype == found)
            partial = path.with_name(f".frozen-dtype-{os.getpid()}")
            partial.write_text(word)
            try:
                os.link(partial, path)  # the first process to get here decides for all
            except FileExistsError:
                pass
            finally:
                partial.unlink()
        word = path.read_text()
        if word not in DTYPES:
            raise LanguageError(f"{path}: expected one of {', '.join(DTYPES)}, got {word[:20]!r}; delete the file")
        return word

    def train(self, setup: Setup, server_round: int, guard: Guard | None = None) -> tuple[LanguageAnswer | None, str]:
        """One round of the adapter; or None and why not, in words that may leave the site.

        Args:
            setup: of the run.
            server_round: the round.
            guard: hides the site in its answer (`client-local`).
        """
        try:
            answer = self._train(setup, server_round)
            private = self._config.privacy
            if private.unit == "client-local":
                from client_app.private_language import hidden

                answer = hidden(answer, self.part.arrays, private.adapter_clip, guard)
            return answer, ""
        except FAILURES as error:
            return None, _told(error)

    def _train(self, setup: Setup, server_round: int) -> LanguageAnswer:
        started = time.monotonic()
        task = self.part
        if not isinstance(task, LanguageTask):
            raise LanguageError("language training: the message is no task")
        client, view = self.client, self._view(setup)
        rows, tells = view.training(*self._texts(setup, "train")), not self._config.privacy.on
        validation = self._held_out(view, setup, "validation") if tells else None
        received = Scores.none(view.counts) if validation is None else validation.scores(client.route())
        seed = seed_of(self._config.server.seed, self._site, server_round, "language")
        update = client.train(rows, seed=seed, offset=task.offset, total=task.total, server_round=server_round)
        report = update.report
        if self._config.agent.distills:
            self._teach(view, setup)
        return LanguageAnswer(
            arrays=update.arrays,
            adapter_digest=task.adapter_digest,
            num_examples=len(rows),
            steps=len(report.losses),
            received=received,
            trained=Scores.none(view.counts) if validation is None else validation.scores(client.route()),
            train_loss_first=report.losses[0] if tells else None,
            train_loss_last=report.losses[-1] if tells else None,
            computed=report.computed,
            fill_seconds=report.fill_seconds,
            step_seconds=report.step_seconds,
            seconds=time.monotonic() - started,
            peak_bytes=report.peak_bytes,
            peak_exact=report.peak_exact,
            frozen_dtype=str(client.frozen_dtype).removeprefix("torch."),
        )

    def teach(self, setup: Setup) -> tuple[Scores | None, str]:
        """Score the adapter as it came, which this site does not tune, and keep its soft labels; or why not."""
        try:
            view = self._view(setup)
            scores = self._held_out(view, setup, "validation").scores(self.client.route())
            if self._config.agent.distills:
                self._teach(view, setup)
            return scores, ""
        except FAILURES as error:
            return None, _told(error)

    def _teach(self, view: TaskView, setup: Setup) -> None:
        """Keep what the adapter says of the training rows: the QNN's soft labels until another version comes."""
        from llm_qfl.language.soft_labels import soft_labels

        texts, _, _ = self._texts(setup, "train")
        client = self.client
        soft_labels(client.route(), view.prompts(texts), folder=self._held.folder, cache_of=client.cache_of)

    def scores(self, setup: Setup) -> tuple[dict[str, dict[str, Scores]], str]:
        """Sums by route and part of the split; or nothing and why not."""
        try:
            view, client = self._view(setup), self.client
            routes = {"compressed-zero-shot": client.route(adapter=False), "adap-emu": client.route()}
            found: dict[str, dict[str, Scores]] = {name: {} for name in routes}
            for part in ("validation", "test"):
                rows = self._held_out(view, setup, part)
                for name, route in routes.items():
                    found[name][part] = rows.scores(route)
            return found, ""
        except FAILURES as error:
            return {}, _told(error)

    def features(self, texts: Sequence[str]) -> Array:
        """Numbers of texts (N, width), by the model as it was first distributed.

        Raises:
            LanguageError: the site lacks that model or its emulator.
        """
        from llm_qfl.language.task import text_features

        client, language = self.client, self._language
        with client.distributed(self.first_digest) as route:
            return text_features(
                route, texts, client.model.tokenizer, language, self._config.data.layer, self._held.folder
            )

    def _view(self, setup: Setup) -> TaskView:
        from llm_qfl.language.task import TaskView

        if setup.text is None:
            raise LanguageError("language training: the setup says nothing of how rows read")
        return TaskView.of(setup.text, self._language, self.client.model.tokenizer)

    def _texts(self, setup: Setup, part: str) -> tuple[tuple[str, ...], Labels, tuple[str, ...] | None]:
        return site_texts(self._config, self._settings, self._site, setup, part)

    def _held_out(self, view: TaskView, setup: Setup, part: str) -> HeldOut:
        return view.held_out(*self._texts(setup, part), cache_of=self.client.cache_of)


def _load(folder: Path, sha256: str, language: LanguageConfig) -> CompressedModel:
    """This process's copy of a model, every byte checked; of several models the last one stays.

    Clients put the shared weights into their numbers and on their device, so other numbers are another copy.
    """
    from llm_qfl.language.compress import load_compressed

    key = (sha256, language.quantization, language.dtype, language.device)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = load_compressed(folder, sha256, quantization=language.quantization)
    return _LOADED[key]


def _told(error: Exception) -> str:
    """An error for the server: its class, and its text only where that can hold nothing of the site's."""
    log(ERROR, "language model: %s", error, exc_info=not isinstance(error, LlmQflError))
    if isinstance(error, LlmQflError) and error.shareable:
        return f"{type(error).__name__}: {error}"
    return f"{type(error).__name__} (the full text is in the site's own log)"
