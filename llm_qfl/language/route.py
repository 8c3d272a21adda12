"""A way through a stack: frozen layers, trained layers, and whose updates are added.

Full model, compressed model, with and without adapters: each is a `Route`, and training, alignment and scoring are
written once for all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm_qfl.language.batches import TokenRows, by_length, collate
from llm_qfl.language.cache import StateCache
from llm_qfl.language.lora import LoraAdapter, only_active
from llm_qfl.language.losses import answer_nll
from llm_qfl.language.stack import Stack


@dataclass(frozen=True, eq=False)
class Route:
    """A way through a stack.

    Attributes:
        stack: the layers.
        base: digest of the base model.
        prefix: numbers, in the stack, of the layers before the first adapter layer.
        suffix: numbers of the layers from there on.
        adapters: every LoRA on the stack.
        active: those of them whose update is added here.
    """

    stack: Stack
    base: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    adapters: tuple[LoraAdapter, ...]
    active: tuple[LoraAdapter, ...]

    def version(self) -> str:
        """Digest of everything that a boundary state depends on besides the row."""
        parts = [self.base, repr(self.prefix), *(str(self.stack.dtype_of(i)) for i in self.prefix)]
        inside = set(self.prefix)
        parts += [f"{a.name} {a.digest()}" for a in self.active if inside & set(a.layers.values())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @torch.no_grad()
    def boundary(self, ids: Tensor) -> Tensor:
        """Input of the first adapter layer for padded ids (rows, length): (rows, length, width)."""
        with self.adapting():
            return self.boundary_here(ids)

    @torch.no_grad()
    def boundary_here(self, ids: Tensor) -> Tensor:
        """The same inside `adapting`."""
        return self.stack.run(self.stack.embed(ids.to(self.stack.device)), self.prefix)

    def cache(self, rows: TokenRows, folder: Path | None = None) -> StateCache:
        """An empty (or, on disk, the former) store for the boundary states of `rows`."""
        dtype = self.stack.dtype_of(self.prefix[-1]) if self.prefix else torch.float32
        return StateCache(rows, self.stack.width, dtype, self.version(), folder)

    def fill(self, cache: StateCache, chosen: np.ndarray) -> int:
        """Compute the boundary states that `cache` lacks of the chosen rows; returns how many."""
        return cache.fill(chosen, lambda part: self.boundary(collate(cache.rows, part).ids))

    def fill_here(self, cache: StateCache, chosen: np.ndarray) -> int:
        """The same inside `adapting`."""
        return cache.fill(chosen, lambda part: self.boundary_here(collate(cache.rows, part).ids))

    def tail(self, boundary: Tensor) -> Tensor:
        """Output of the last layer for boundary states (rows, length, width); call inside `adapting`."""
        return self.stack.run(boundary, self.suffix)

    @contextmanager
    def adapting(self) -> Iterator[None]:
        """The context in which exactly this route's updates are added; one at a time on a stack."""
        with self.stack.turn, self._switched():
            yield

    def _switched(self) -> AbstractContextManager[None]:
        """Exactly this route's updates are added inside."""
        return only_active(self.adapters, self.active)


@torch.no_grad()
def score(route: Route, rows: TokenRows, cache: StateCache | None = None, batch_size: int = 16) -> list[np.ndarray]:
    """Negative log-likelihoods of the answer tokens, nats: one array (answer tokens,) a row.

    Args:
        route: the model.
        rows: the rows.
        cache: boundary states of exactly these rows; they are computed here where it has none.
        batch_size: rows at once.
    """
    out: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for chosen, hidden in outputs(route, rows, cache, batch_size):
        batch = collate(rows, chosen).to(route.stack.device)
        values = answer_nll(route.stack, hidden, batch).cpu().numpy().astype(np.float64)
        counts = [len(rows.ids[i]) - int(rows.prompt[i]) for i in chosen]
        for row, piece in zip(chosen, np.split(values, np.cumsum(counts)[:-1]), strict=True):
            out[int(row)] = piece
    return out


@torch.no_grad()
def logits_at(
    route: Route,
    rows: TokenRows,
    positions: Sequence[int] | np.ndarray,
    cache: StateCache | None = None,
    tokens: Sequence[int] | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """Logits of the token after one position of each row.

    Args:
        route: the model.
        rows: the rows.
        positions: a position in each row.
        cache: boundary states of exactly these rows.
        tokens: only these tokens' logits, or None for the whole vocabulary.
        batch_size: rows at once.

    Returns:
        (rows, tokens) float32.
    """
    at = np.asarray(positions, np.int64)
    out = np.zeros((len(rows), route.stack.vocabulary if tokens is None else len(tokens)), np.float32)
    for chosen, hidden in outputs(route, rows, cache, batch_size):
        where = torch.from_numpy(at[chosen]).to(hidden.device)
        logits = route.stack.head(hidden[torch.arange(len(chosen), device=hidden.device), where])
        out[chosen] = (logits if tokens is None else logits[:, list(tokens)]).cpu().numpy()
    return out


@torch.no_grad()
def outputs(
    route: Route, rows: TokenRows, cache: StateCache | None = None, batch_size: int = 16
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Outputs of the last layer, batch by batch in the order of length: (rows chosen, (rows, length, width))."""
    for chosen in by_length(rows.lengths, np.arange(len(rows)), batch_size):
        if cache is None:
            boundary = route.boundary(collate(rows, chosen).ids)
        else:
            route.fill(cache, chosen)
            boundary = cache.batch(chosen).to(route.stack.device)
        with route.adapting():
            hidden = route.tail(boundary)
        yield chosen, hidden
