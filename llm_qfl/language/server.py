"""The server's side: one copy of the full model, two named LoRAs, and four ways through it.

The compressed model is a list of layer numbers here (`Route`): nothing is copied, swapped or re-indexed, so the only
extra memory is the LoRAs and the states that are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llm_qfl.federation.config_language import LanguageConfig
from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.seeding import SERVER, seed_of
from llm_qfl.language.align import AlignReport, Teacher, align, boundary_error
from llm_qfl.language.batches import TokenRows
from llm_qfl.language.cache import StateCache
from llm_qfl.language.compress import ExportedModel, export_compressed, pruned_tensors
from llm_qfl.language.device import cast_layers, cast_rest, choose_device
from llm_qfl.language.emulator import DistributedEmulator
from llm_qfl.language.exchange import Exchange
from llm_qfl.language.lora import Arrays, LoraAdapter
from llm_qfl.language.methods import ADAPTER, EMULATOR, align_settings, lora_specs
from llm_qfl.language.models import BaseModel
from llm_qfl.language.route import Route, logits_at, score
from llm_qfl.language.split import SplitPlan
from llm_qfl.language.stack import Stack
from llm_qfl.language.training import StepBudget
from llm_qfl.language.transfer import TransferReport, transfer
from llm_qfl.language.wire import byte_count, decode

ROUTES = ("zero-shot", "compressed-zero-shot", "adap-emu", "adap-fu")


@dataclass(frozen=True)
class Broadcast:
    """What the server sends before a round.

    Attributes:
        arrays: `adapter/...` and, when asked for, `emulator/...`.
        adapter_digest: of the adapter's values as a site decodes them; an answer must repeat it.
        emulator_digest: of the emulator's values that the site must have, or "" where the method has none.
        first_digest: of the emulator as it was first distributed (features for the QNN are its), or "".
        size: bytes of the arrays.
    """

    arrays: Arrays
    adapter_digest: str
    emulator_digest: str
    first_digest: str
    size: int


class ServerLanguage:
    """The server's language model.

    Args:
        base: the full model; its stack is taken over.
        config: the section `language`.
        seed: the run's seed.

    Raises:
        LanguageError: where the model cannot be cut as configured.
    """

    def __init__(self, base: BaseModel, config: LanguageConfig, *, seed: int) -> None:
        self.config, self.base, self.seed = config.effective(), base, seed
        self.stack = Stack(base.model)
        self.plan = SplitPlan(*config.split_arguments(len(self.stack)))
        self._stored = next(base.model.parameters()).dtype
        self._prepare()
        self.adapter = self._attach(ADAPTER, self.plan.adapter)
        self.emulator = self._attach(EMULATOR, self.plan.kept) if config.compresses else None
        self._exchange = Exchange(self.adapter, self.config.wire)
        self._teacher: Teacher | None = None
        self._caches: dict[tuple[str, str], StateCache] = {}
        self.distribution = None if self.emulator is None else DistributedEmulator(self.emulator, self.config.wire)

    def _dtype(self, device: torch.device) -> torch.dtype:
        """On a CPU float32, since alignment trains through every kept layer."""
        return torch.bfloat16 if device.type == "cuda" and self.config.dtype != "float32" else torch.float32

    def _prepare(self) -> None:
        """To the device. Sites get the weights as they are stored, not as this device rounds them."""
        device = choose_device(self.config.device)
        dtype = self._dtype(device)
        rounds = torch.promote_types(dtype, self._stored) != dtype
        self._unrounded = pruned_tensors(self.stack, self.plan) if rounds else None
        self.base.model.to(device)
        cast_layers(self.stack, range(len(self.stack)), dtype)
        cast_rest(self.stack, dtype)

    def _attach(self, name: str, layers: Sequence[int]) -> LoraAdapter:
        spec = lora_specs(self.config)[name]
        return LoraAdapter(
            self.stack, name, {i: i for i in layers}, spec, seed_of(self.seed, SERVER, 0, f"language-{name}")
        )

    def route(self, kind: str, cut: int | None = None) -> Route:
        """A way through the model: one of `ROUTES`.

        Args:
            kind: `zero-shot` (full model), `adap-fu` (full model with the adapter), `compressed-zero-shot` (compressed
                and aligned), `adap-emu` (that with the adapter).
            cut: layer, by its number in the full model, at which prefix and suffix meet; default: the first trained.

        Raises:
            LanguageError: for an unknown kind.
        """
        if kind not in ROUTES:
            raise LanguageError(f"route: expected one of {', '.join(ROUTES)}, got {kind!r}")
        compressed = kind in ("compressed-zero-shot", "adap-emu")
        layers = self.plan.held if compressed else tuple(range(self.plan.n))
        start = self.plan.first_trained if cut is None else cut
        every = (self.adapter,) if self.emulator is None else (self.adapter, self.emulator)
        active = [self.emulator] if compressed and self.emulator is not None else []
        active += [self.adapter] if kind.startswith("adap") else []
        prefix, suffix = tuple(i for i in layers if i < start), tuple(i for i in layers if i >= start)
        return Route(self.stack, self.base.digest, prefix, suffix, every, tuple(active))

    def export(self, parent: Path) -> ExportedModel:
        """Write what sites load, to `parent/<sha256>`.

        Raises:
            LanguageError: where there is no room.
        """
        base = (self.base.name, self.base.digest)
        return export_compressed(
            self.stack,
            self.base.tokenizer,
            self.plan,
            base,
            lora_specs(self.config),
            parent,
            dtype=self._stored,
            tensors=self._unrounded,
        )

    def align(self, public: TokenRows, server_round: int, *, steps: int | None = None) -> AlignReport | None:
        """Distil the emulator on public rows; None where the method has none.

        The full model's states on the public rows are kept for the whole run.

        Args:
            public: public rows, the same object in every call.
            server_round: 0 before the first round.
            steps: default: `align-first` in round 0, then `align-steps`.
        """
        if self.distribution is None:
            return None
        if steps is None:
            steps = self.config.align_steps if server_round else self.config.align_first
        teacher = self._teacher_of(public)
        settings = align_settings(self.config, steps, again=server_round > 0)
        seed = seed_of(self.seed, SERVER, server_round, "language-align")
        report = align(self.route("adap-emu", self._emulator_end), self.distribution.lora, teacher, settings, seed=seed)
        self.distribution.publish(first=server_round == 0)
        return report

    def boundary_error(self, public: TokenRows, chosen: Sequence[int] | np.ndarray) -> float:
        """Relative squared error per token of the emulator on some public rows; 0 where nothing is dropped."""
        if self.emulator is None:
            return 0.0
        student = self.route("adap-emu", self._emulator_end)
        return boundary_error(student, self._teacher_of(public), np.asarray(chosen, np.int64))

    def calibrate(
        self, public: TokenRows, server_round: int, tokens: Sequence[int] | None = None
    ) -> TransferReport | None:
        """`calibrate-steps` of `transfer` on public prompts; the adapter gets a new version. None for no steps."""
        steps = self.config.calibrate_steps
        if not steps or self.emulator is None:
            return None
        full, compressed = self.route("adap-fu"), self.route("adap-emu")
        report = transfer(
            full,
            compressed,
            self.adapter,
            public,
            StepBudget(steps, self.config.align_batch, self.config.calibrate_rate, total=steps, clip=self.config.clip),
            seed=seed_of(self.seed, SERVER, server_round, "language-calibrate"),
            tokens=tokens,
            caches=(self._cache_of(full, public), self._cache_of(compressed, public)),
        )
        self.set_adapter(self.adapter.arrays())
        return report

    @property
    def first_digest(self) -> str:
        """Of the emulator as it was first distributed; empty without one."""
        return self.distribution.first_digest if self.distribution else ""

    @property
    def _emulator_end(self) -> int:
        return self.plan.n - (self.plan.a - self.plan.head)

    def _teacher_of(self, public: TokenRows) -> Teacher:
        if self._teacher is None or self._teacher.rows is not public:
            cached = self.config.align_loss != "released"  # which counts padding, so a row's states are not its own
            self._teacher = Teacher(self.route("adap-fu", self._emulator_end), public, cached=cached)
        return self._teacher

    def broadcast(self, *, emulator: bool, first: bool = False) -> Broadcast:
        """What sites need for a round.

        Args:
            emulator: send the emulator too? Only to sites that do not hold `emulator_digest` yet.
            first: the emulator as it was first distributed, in place of that of the next round.
        """
        arrays, digest = self._exchange.send()
        known = self.distribution
        if known is None:
            return Broadcast(arrays, digest, "", "", byte_count(arrays))
        if emulator:
            arrays = {**arrays, **(known.first_sent if first else known.sent)}
        current = known.first_digest if first else known.digest
        return Broadcast(arrays, digest, current, known.first_digest, byte_count(arrays))

    def first_arrays(self) -> Arrays:
        """The emulator as it was first distributed, for a site that lost it, beside a later one."""
        return self.distribution.beside() if self.distribution else {}

    def receive(self, arrays: Mapping[str, np.ndarray], adapter_digest: str) -> Arrays:
        """A site's matrices from its answer, strictly checked.

        Args:
            arrays: the answer; keys that do not start with `adapter/` are not looked at.
            adapter_digest: of the broadcast that the answer is to.

        Raises:
            LanguageError: for an answer to an unknown or too old broadcast, or one of another shape.
        """
        return self._exchange.receive(arrays, adapter_digest)

    def aggregate(self, answers: Sequence[tuple[Arrays, str, float]]) -> None:
        """Average the sites' matrices into the next adapter (A and B separately).

        Args:
            answers: (matrices from `receive`, the digest they answer to, weight), sorted by site name by the caller
                so that sums are repeatable.

        Raises:
            LanguageError: for no answer or weights that do not sum to something positive.
        """
        self.set_adapter(self._exchange.mean(answers))

    def change(self, arrays: Arrays, adapter_digest: str) -> np.ndarray:
        """What a site's matrices (from `receive`) would change, as one vector (P,)."""
        return self._exchange.change(arrays, adapter_digest)

    def move(self, change: np.ndarray) -> None:
        """Add one change (P,) to the adapter."""
        self.set_adapter(self._exchange.moved(change))

    def set_adapter(self, arrays: Arrays) -> None:
        """Put values into the adapter (after aggregation, or from a checkpoint).

        Raises:
            LanguageError: where they are another adapter's.
        """
        self._exchange.set(arrays)

    def adapter_arrays(self) -> Arrays:
        """The adapter's exact values, `<layer>/<module>/<A|B>`, float32."""
        return {key: value.copy() for key, value in self._exchange.exact.items()}

    @contextlib.contextmanager
    def using(self, arrays: Arrays) -> Iterator[None]:
        """Score another adapter for a while (a site's own, where nothing is averaged)."""
        self.adapter.load(arrays)
        try:
            yield
        finally:
            self.adapter.load(self._exchange.exact)

    @contextlib.contextmanager
    def distributed(self) -> Iterator[Route]:
        """The compressed model as it was first distributed (no adapter, the emulator of before the first round).

        Features for the QNN come from it, at every site and here, in the whole run.
        """
        if self.distribution is None:
            yield self.route("zero-shot")
            return
        with self.distribution.as_first():
            yield self.route("compressed-zero-shot")

    def state(self) -> Arrays:
        """Everything that changes in a run, for a checkpoint: adapter, emulator, first, wire."""
        out = {f"{ADAPTER}/{key}": value for key, value in self._exchange.exact.items()}
        return out | (self.distribution.state() if self.distribution else {})

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave.

        Raises:
            LanguageError: where it is another plan's.
        """
        if self.distribution is not None:
            self.distribution.load_state(arrays)
        self.set_adapter(decode(ADAPTER, arrays, "fp32", self.adapter.shapes()))

    def score(self, kind: str, rows: TokenRows) -> list[np.ndarray]:
        """Negative log-likelihoods of the answer tokens, nats, one array a row.

        The states at the first trained layer are kept for as long as they are valid, so that from the second time on
        only the trained layers run (for `adap-fu` and `zero-shot`: in the whole run).

        Args:
            kind: one of `ROUTES`.
            rows: the rows, the same object each time.
        """
        route = self.route(kind)
        return score(route, rows, self._cache_of(route, rows))

    def logits_at(
        self, kind: str, rows: TokenRows, positions: Sequence[int] | np.ndarray, tokens: Sequence[int] | None = None
    ) -> np.ndarray:
        """Logits of the token after one position of each row: (rows, tokens); states are kept as in `score`."""
        route = self.route(kind)
        return logits_at(route, rows, positions, self._cache_of(route, rows), tokens)

    def _cache_of(self, route: Route, rows: TokenRows) -> StateCache | None:
        if not route.prefix:
            return None
        key = (repr(route.prefix), rows.digest())
        known = self._caches.get(key)
        if known is None or known.version != route.version():
            known = self._caches[key] = route.cache(rows)
        return known
