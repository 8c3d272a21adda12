"""A site's side: the compressed model, the adapter it tunes, the emulator's update it was sent."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora import LoraLayer

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.cache import StateCache, cache_folder, drop_stale
from llm_qfl.language.compress import CompressedModel
from llm_qfl.language.device import cast_layers, cast_rest, choose_device, choose_frozen_dtype
from llm_qfl.language.lora import Arrays, LoraAdapter, digest_of_arrays
from llm_qfl.language.methods import ADAPTER, EMULATOR, FIRST, lora_specs, step_budget
from llm_qfl.language.route import Route, logits_at, score
from llm_qfl.language.stack import Stack
from llm_qfl.language.store import SiteStore
from llm_qfl.language.training import TrainReport, train_adapter
from llm_qfl.language.wire import byte_count, decode, encode_change

_LOG = logging.getLogger(__name__)
RESIDUAL, OWN = "residual", "own-adapter"  # what a round leaves for the next one


@dataclass(frozen=True)
class ClientUpdate:
    """A site's answer.

    Attributes:
        arrays: `adapter/...` as it goes over the wire.
        size: bytes of the arrays.
        report: what training did.
    """

    arrays: Arrays
    size: int
    report: TrainReport


class ClientLanguage:
    """A site's language model.

    Args:
        model: the compressed model, for this client alone (`share` makes another one of the same weights).
        config: the section `language`; it must agree with the model's manifest.
        folder: where the site keeps boundary states, the emulator's update and what rounding lost, across processes;
            None keeps all in memory.

    Raises:
        LanguageError: where the model was compressed for another configuration.
    """

    def __init__(self, model: CompressedModel, config: LanguageConfig, *, folder: Path | None = None) -> None:
        self.config, self.model, self.folder = config.effective(), model, folder
        self.stack, self.plan = model.stack, model.manifest.plan
        _check_manifest(model, config)
        self.frozen_dtype = self._prepare()
        specs = model.manifest.lora
        held = self.plan.held
        adapter = {full: self.plan.to_compressed(full) for full in held if full in set(self.plan.adapter)}
        self.adapter = LoraAdapter(self.stack, ADAPTER, adapter, specs[ADAPTER], seed=0)  # the server's values come
        self.emulator: LoraAdapter | None = None
        if EMULATOR in specs:
            kept = {full: self.plan.to_compressed(full) for full in self.plan.kept}
            self.emulator = LoraAdapter(self.stack, EMULATOR, kept, specs[EMULATOR], seed=0)
        self._received: Arrays | None = None
        self._store = SiteStore(folder)
        self._caches: dict[str, StateCache] = {}
        self._emulator_digest = ""
        self._kept: int | None = None

    @property
    def _frozen(self) -> tuple[int, ...]:
        return tuple(i for i, full in enumerate(self.plan.held) if full < self.plan.first_trained)

    def _prepare(self) -> torch.dtype:
        """To the device, in the numbers that suit it; 4-bit weights stay where and what bitsandbytes made them."""
        if self.config.quantization != "none":
            return torch.bfloat16
        device = choose_device(self.config.device)
        self.stack.model.to(device)
        frozen = choose_frozen_dtype(self.config.dtype, self.stack)
        trained = torch.bfloat16 if device.type == "cuda" and self.config.dtype != "float32" else torch.float32
        cast_layers(self.stack, self._frozen, frozen)
        cast_layers(self.stack, [i for i in range(len(self.stack)) if i not in self._frozen], trained)
        cast_rest(self.stack, trained)
        self.stack.release()  # where layers were cast or moved, these pages were read for the last time
        return frozen

    def route(self, *, adapter: bool = True, emulator: bool = True, cut: int | None = None) -> Route:
        """The compressed model, with or without updates.

        Args:
            adapter: with the adapter's update.
            emulator: with the emulator's.
            cut: number, in the compressed model, of the layer at which prefix and suffix meet; default: first trained.
        """
        start = len(self._frozen) if cut is None else cut
        every = (self.adapter,) if self.emulator is None else (self.adapter, self.emulator)
        active = [self.adapter] if adapter else []
        active += [self.emulator] if emulator and self.emulator is not None else []
        numbers = range(len(self.stack))
        base = self.model.manifest.base_digest
        return Route(self.stack, base, tuple(numbers[:start]), tuple(numbers[start:]), every, tuple(active))

    def receive(
        self,
        arrays: Mapping[str, np.ndarray],
        emulator_digest: str,
        first_digest: str = "",
        *,
        kept: int | None = None,
        adapter_digest: str = "",
        tidy: bool = True,
    ) -> None:
        """Take over a broadcast; where nothing is averaged, a site that has trained goes on with its own adapter.

        Args:
            arrays: `adapter/...`, perhaps `emulator/...` and `first/...`.
            emulator_digest: of the emulator that the round is for; one that is not in `arrays` must be held already.
            first_digest: of the emulator that `distributed` is about; its file stays when others are deleted.
            kept: round of the answer after which this site goes on with what it kept; 0 for none yet, None for the
                newest.
            tidy: delete emulators that are neither.
            adapter_digest: of the adapter's values as they are decoded here (on a lossy wire not the server's own); an
                answer names it, so it must be what training starts from. Empty where none was said.

        Raises:
            LanguageError: where anything is missing, of another shape, not what was announced, or the emulator is not
                held.
        """
        wire = self.config.wire
        received = decode(ADAPTER, arrays, wire, self.adapter.shapes())
        if adapter_digest and (found := digest_of_arrays(received)) != adapter_digest:
            raise LanguageError(
                f"the adapter that was sent is not the one announced: expected {adapter_digest[:16]}, got {found[:16]}"
            )
        self._take_emulator(arrays, emulator_digest)
        self._take_first(arrays, first_digest)
        if tidy:
            self._store.keep_only("emulator-", {_emulator_file(emulator_digest), _emulator_file(first_digest)})
        self._kept = kept
        own = None if self.config.federated else self._store.load_round(OWN, kept)
        self.adapter.load(own or received)
        self._received = received

    def holds(self, emulator_digest: str) -> bool:
        """Would a broadcast without the emulator do?"""
        return emulator_digest in ("", self._emulator_digest) or self._store.has(_emulator_file(emulator_digest))

    def train(
        self, rows: TokenRows, *, seed: int, offset: int = 0, total: int = 0, server_round: int | None = None
    ) -> ClientUpdate:
        """Tune the adapter from where it is, and encode the answer.

        Args:
            rows: the site's training rows, weights (class balance) included.
            seed: of this site in this round.
            offset: language steps of the run before this round.
            total: language steps of the whole run, for the cosine.
            server_round: of the task; what is kept belongs to it.

        Raises:
            LanguageError: before a broadcast was received, or as `train_adapter`.
        """
        if self._received is None:
            raise LanguageError("language training: no adapter was received yet")
        config = self.config
        budget = step_budget(config, offset, total)
        route = self.route()
        report = train_adapter(
            route, self.adapter, rows, budget, config.eps, seed=seed, cache=self.cache_of(route, rows)
        )
        added = config.federated and config.wire != "fp32"  # else nobody adds up changes, and what rounding lost
        before = self._residual() if added else {}
        arrays, residual = encode_change(ADAPTER, self.adapter.arrays(), self._received, before, config.wire)
        if added:
            self._store.save_round(RESIDUAL, residual, self._kept, server_round)
        if not config.federated:
            self._store.save_round(OWN, self.adapter.arrays(), self._kept, server_round)
        return ClientUpdate(arrays, byte_count(arrays), report)

    def _residual(self) -> Arrays:
        """What rounding took from this site's last answer that counted.

        Where that is gone (a new disk) the site goes on without: it was lost once, not for ever, and the log says so.
        """
        if self._kept and not self._store.has(f"{RESIDUAL}-{self._kept}"):
            _LOG.warning("language.wire: what rounding took in round %s is not kept here any more", self._kept)
            return {}
        return self._store.load_round(RESIDUAL, self._kept) or {}

    def score(self, rows: TokenRows, *, adapter: bool = True) -> list[np.ndarray]:
        """Negative log-likelihoods of the answer tokens, nats, one array a row (what AdapEmu scores at this site)."""
        route = self.route(adapter=adapter)
        return score(route, rows, self.cache_of(route, rows))

    def logits_at(
        self,
        rows: TokenRows,
        positions: Sequence[int] | np.ndarray,
        tokens: Sequence[int] | None = None,
        *,
        adapter: bool = True,
    ) -> np.ndarray:
        """Logits of the token after one position of each row: (rows, tokens)."""
        route = self.route(adapter=adapter)
        return logits_at(route, rows, positions, self.cache_of(route, rows), tokens)

    @contextlib.contextmanager
    def distributed(self, first_digest: str) -> Iterator[Route]:
        """The compressed model as it was first distributed (no adapter, the emulator of before the first round).

        Args:
            first_digest: of that emulator.

        Raises:
            LanguageError: where this site no longer holds it.
        """
        if self.emulator is None or first_digest == self._emulator_digest:
            yield self.route(adapter=False)
            return
        first = self._store.load(_emulator_file(first_digest))
        if first is None or digest_of_arrays(first) != first_digest:
            raise LanguageError(f"this site does not hold emulator {first_digest[:16]}; it must be sent")
        now = self.emulator.arrays()
        self.emulator.load(first)
        try:
            yield self.route(adapter=False)
        finally:
            self.emulator.load(now)

    def cache_of(self, route: Route, rows: TokenRows) -> StateCache | None:
        """Boundary states; none where the first layer is trained already (the embedding is no work)."""
        if not route.prefix:
            return None
        version, key = route.version(), rows.digest()
        known = self._caches.get(key)
        if known is None or known.version != version:
            where = None
            if self.folder is not None:
                drop_stale(self.folder, version)
                where = cache_folder(self.folder, version)
            known = self._caches[key] = route.cache(rows, where)
        return known

    def _take_emulator(self, arrays: Mapping[str, np.ndarray], digest: str) -> None:
        if self.emulator is None or digest == self._emulator_digest:
            return
        sent = any(key.startswith(f"{EMULATOR}/") for key in arrays)
        name = _emulator_file(digest)
        if sent:
            values = decode(EMULATOR, arrays, self.config.wire, self.emulator.shapes())
            if digest_of_arrays(values) != digest:
                raise LanguageError(f"the emulator that was sent is not the one announced ({digest[:16]})")
        else:
            held = self._store.load(name)
            if held is None:
                raise LanguageError(f"this site does not hold emulator {digest[:16]}; it must be sent")
            values = held
        self.emulator.load(values)
        self._emulator_digest = digest
        if sent:
            self._store.save(name, values)

    def _take_first(self, arrays: Mapping[str, np.ndarray], digest: str) -> None:
        if self.emulator is None or not any(key.startswith(f"{FIRST}/") for key in arrays):
            return
        values = decode(FIRST, arrays, self.config.wire, self.emulator.shapes())
        if digest_of_arrays(values) != digest:
            raise LanguageError(f"the first emulator that was sent is not the one announced ({digest[:16]})")
        self._store.save(_emulator_file(digest), values)


def _emulator_file(digest: str) -> str:
    return f"emulator-{digest[:16]}"


def share(model: CompressedModel) -> CompressedModel:
    """Another client's model in the same process: modules of its own, frozen weights shared.

    Raises:
        LanguageError: once a `ClientLanguage` was made of `model`.
    """
    inner = model.stack.model
    if any(isinstance(module, LoraLayer) for module in inner.modules()):
        raise LanguageError("share: a client was made of this model already; share it before")
    memo = {id(tensor): tensor for tensor in [*inner.parameters(), *inner.buffers()]}
    stack = Stack(copy.deepcopy(inner, memo))
    stack.mapped = model.stack.mapped
    return CompressedModel(stack, model.tokenizer, model.manifest, model.sha256)


def _check_manifest(model: CompressedModel, config: LanguageConfig) -> None:
    manifest = model.manifest
    expected = config.split_arguments(manifest.plan.n)
    plan = manifest.plan
    if (plan.n, plan.a, plan.beta, plan.head) != expected:
        raise LanguageError(
            f"compressed model: cut as n={plan.n}, a={plan.a}, beta={plan.beta}, head={plan.head}; the run config asks "
            f"for {expected}: it is another run's model"
        )
    if manifest.lora != lora_specs(config):
        raise LanguageError(
            f"compressed model: made for LoRAs {manifest.lora}, the run config says {lora_specs(config)}"
        )
