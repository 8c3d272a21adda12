"""What arms share, kept in files: the states of frozen layers, and the emulators that alignment gave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.language.align import Teacher
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.cache import StateCache
from llm_qfl.language.client import ClientLanguage
from llm_qfl.language.compress import CompressedModel
from llm_qfl.language.methods import EMULATOR
from llm_qfl.language.models import BaseModel
from llm_qfl.language.route import Route
from llm_qfl.language.server import ServerLanguage

ALIGN_KEYS = (
    "method", "beta", "adapter_layers", "placement", "modules", "emulator_rank", "scale", "dropout", "align_first",
    "align_batch", "align_rate", "align_loss", "kl_weight", "kl_tokens", "schedule", "weight_decay", "clip", "rank",
)  # fmt: skip


class States:
    """Boundary states by the content of the question: one file for a version of the layers and a set of rows.

    Args:
        folder: where the files lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[str, str], StateCache] = {}
        self._passing: dict[tuple[str, str], StateCache] = {}
        self._realigned = False

    def realigned(self) -> None:
        """The emulator is another one now: states that depend on it serve this arm alone and stay in memory."""
        self._realigned = True
        self._passing.clear()

    def of(self, route: Route, rows: TokenRows) -> StateCache | None:
        """The states of these rows at the first trained layer; None where that is the first of all."""
        if not route.prefix:
            return None
        key = (route.version(), rows.digest())
        passing = self._realigned and any(adapter.name == EMULATOR for adapter in route.active)
        known = self._passing if passing else self._open
        if key not in known:
            known[key] = route.cache(rows, None if passing else self._folder)
        return known[key]


class Server(ServerLanguage):
    """The server with the states of frozen layers in files."""

    def __init__(self, base: BaseModel, config: LanguageConfig, states: States, *, seed: int) -> None:
        super().__init__(base, config, seed=seed)
        self._states = states

    def _cache_of(self, route: Route, rows: TokenRows) -> StateCache | None:
        return self._states.of(route, rows)

    def _teacher_of(self, public: TokenRows) -> Teacher:
        teacher = super()._teacher_of(public)
        if teacher.cached:
            teacher._boundary = self._states.of(teacher.route, public)
        return teacher


class Client(ClientLanguage):
    """A site with the states of frozen layers in files; all else is in memory."""

    def __init__(self, model: CompressedModel, config: LanguageConfig, states: States) -> None:
        super().__init__(model, config)
        self._states = states

    def cache_of(self, route: Route, rows: TokenRows) -> StateCache | None:
        """Boundary states, shared by all arms that have the same frozen layers."""
        return self._states.of(route, rows)


def align_first(server: Server, public: TokenRows, folder: Path) -> float:
    """The alignment before the first round, once for all arms that ask for the same; returns its last loss."""
    config = server.config
    method = "tail" if config.compresses else config.method
    asked = {key: getattr(config, key) for key in ALIGN_KEYS} | {"method": method}
    asked |= {"rows": public.digest(), "base": server.base.digest, "seed": server.seed}
    if not config.kl_weight:
        asked |= {"kl_tokens": 0, "rank": 0}
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]
    path, note = folder / f"emulator-{name}.safetensors", folder / f"emulator-{name}.json"
    if note.exists():
        state = server.state()
        server.load_state({**load_file(path), **{k: v for k, v in state.items() if k.startswith("adapter/")}})
        return float(json.loads(note.read_text()))
    report = server.align(public, 0)
    if report is None:
        raise ValueError("this method has no emulator to align")
    loss = float(np.mean(report.boundary_losses[-10:]))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v for k, v in server.state().items() if not k.startswith("adapter/")}, path)
    note.write_text(json.dumps(loss))
    return loss
