"""Texts as numbers for the QNN (`data.encoding = language`): mean hidden state of a middle layer.

All sites and the server must get the same numbers for a text, for the whole run: the states are those of the model as
it was first distributed (compressed, emulator version 0, no adapter). They agree to rounding where the layers compute
in float32 everywhere; in bfloat16 at one site and float32 at another they differ in the third digit, so a run with
these features fixes `language.dtype`. Rows leave no trace but a file on the node's own disk that its owner alone can
read.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llm_qfl.federation.errors import LanguageError
from llm_qfl.federation.types import Array
from llm_qfl.language.batches import TokenRows, by_length, collate
from llm_qfl.language.files import need_room
from llm_qfl.language.route import Route

FORMAT = "pooled-states 1"
BATCH = 16


class HiddenStates(Protocol):
    """A model that gives hidden states."""

    @property
    def width(self) -> int:
        """Size of a hidden state."""

    @property
    def depth(self) -> int:
        """Layers."""

    def version(self, layer: int) -> str:
        """Names everything that the states after `layer` layers depend on besides the row."""

    def hidden_states(self, ids: Tensor, layer: int) -> Tensor:
        """States after `layer` layers for right-padded ids (rows, length): (rows, length, width)."""


class RouteStates:
    """The hidden states of a route through a stack.

    Args:
        route: layers and the updates that are added; for features without the adapter being tuned.
    """

    def __init__(self, route: Route) -> None:
        self._route = route
        self._layers = (*route.prefix, *route.suffix)

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return self._route.stack.width

    @property
    def depth(self) -> int:
        """Layers on the route."""
        return len(self._layers)

    def version(self, layer: int) -> str:
        """Digest of base model, layers, their numbers and the updates on them."""
        return self._part(layer).version()

    @torch.no_grad()
    def hidden_states(self, ids: Tensor, layer: int) -> Tensor:
        """States after `layer` layers (before the final norm) for right-padded ids: (rows, length, width)."""
        return self._part(layer).boundary(ids)

    def _part(self, layer: int) -> Route:
        route = self._route
        return Route(route.stack, route.base, self._layers[:layer], self._layers[layer:], route.adapters, route.active)


def pooled_states(
    model: HiddenStates, rows: TokenRows, layer: int, *, folder: Path | None = None, batch_size: int = BATCH
) -> Array:
    """Mean hidden state of each row's tokens after `layer` layers: (N, width) float64.

    Position 0 is left out where there is another: its state carries nearly all of the squares and no meaning (an
    attention sink). Padding never counts.

    Args:
        model: gives the states.
        rows: the rows; where the prompt ends does not matter.
        layer: 1 (after the first layer) to the model's depth.
        folder: where answers are kept by the content of the question, or None.
        batch_size: rows at once.

    Raises:
        LanguageError: a layer that is not there, states that are not finite, a damaged file or no room on disk.
    """
    if not 1 <= layer <= model.depth:
        raise LanguageError(f"data.layer: expected a layer from 1 to {model.depth}, got {layer}")
    if not len(rows):
        return np.zeros((0, model.width))
    path = None if folder is None else folder / f"features-{_key(model, rows, layer)}.npz"
    if path is not None and path.exists():
        return _read(path, (len(rows), model.width))
    out = np.empty((len(rows), model.width))
    for chosen in by_length(rows.lengths, np.arange(len(rows)), batch_size):
        out[chosen] = _pool(model, rows, chosen, layer)
    if not np.isfinite(out).all():
        raise LanguageError(f"language features: states after layer {layer} are not finite; the weights are damaged")
    if path is not None:
        _write(path, out)
    return out


@torch.no_grad()
def _pool(model: HiddenStates, rows: TokenRows, chosen: np.ndarray, layer: int) -> np.ndarray:
    batch = collate(rows, chosen)
    states = model.hidden_states(batch.ids, layer).cpu().double()
    counted = batch.mask.clone()
    counted[:, 0] = counted.sum(dim=1) == 1  # a row of one token has nothing else
    # where, not times: what a model puts at padding may be anything, NaN too
    kept = torch.where(counted[:, :, None], states, torch.zeros((), dtype=torch.float64))
    means: np.ndarray = (kept.sum(dim=1) / counted.sum(dim=1, keepdim=True)).numpy()
    return means


def _key(model: HiddenStates, rows: TokenRows, layer: int) -> str:
    text = "\n".join([FORMAT, model.version(layer), str(layer), str(model.width), rows.digest()])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, shape: tuple[int, int]) -> Array:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found: np.ndarray = file["states"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise LanguageError(f"{path}: cannot be read as language features ({error}); delete the file") from error
    if found.shape != shape or found.dtype != np.float64 or not np.isfinite(found).all():
        raise LanguageError(
            f"{path}: expected float64 of shape {shape}, got {found.dtype} {found.shape}; delete the file"
        )
    return found


def _write(path: Path, states: Array) -> None:
    """Whole or not at all, for its owner alone."""
    need_room(path.parent, states.nbytes, "language features")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        number, part = tempfile.mkstemp(prefix=".features-", suffix=".npz", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(number, "wb") as file:
                np.savez(file, states=states)
            Path(part).replace(path)
        finally:
            Path(part).unlink(missing_ok=True)
    except OSError as error:
        raise LanguageError(f"cannot keep language features in {path.parent}: {error.strerror or error}") from error
