"""The adapter between server and sites: sent rounded, answered to by digest, averaged into exact values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llm_qfl.federation.errors import LanguageError
from llm_qfl.language.lora import Arrays, LoraAdapter, check_arrays, digest_of_arrays
from llm_qfl.language.methods import ADAPTER
from llm_qfl.language.wire import decode, decode_change, encode

KEPT = 8  # broadcasts that may still be answered to


class Exchange:
    """The server's side of the adapter on the wire.

    Args:
        adapter: the server's adapter; it always holds the exact values.
        wire: the format.
    """

    def __init__(self, adapter: LoraAdapter, wire: str) -> None:
        self._adapter, self._wire = adapter, wire
        self.exact = adapter.arrays()
        self._sent: dict[str, Arrays] = {}
        self._latest = ""

    def send(self) -> tuple[Arrays, str]:
        """The adapter for the wire, and the digest of what sites decode it to."""
        arrays = encode(ADAPTER, self.exact, self._wire)
        values = decode(ADAPTER, arrays, self._wire, self._adapter.shapes())
        self._latest = digest_of_arrays(values)
        self._sent.pop(self._latest, None)  # to the end of the order
        self._sent[self._latest] = values
        for old in list(self._sent)[:-KEPT]:
            del self._sent[old]
        return arrays, self._latest

    def receive(self, arrays: Mapping[str, np.ndarray], adapter_digest: str) -> Arrays:
        """A site's matrices from its answer to the broadcast of that digest.

        Raises:
            LanguageError: for an answer to an unknown or too old broadcast, or one of another shape.
        """
        if adapter_digest not in self._sent:
            raise LanguageError(
                f"an answer to adapter {adapter_digest[:16]}, which is none of the last {KEPT} that were sent"
            )
        return decode_change(ADAPTER, arrays, self._sent[adapter_digest], self._wire)

    def mean(self, answers: Sequence[tuple[Arrays, str, float]]) -> Arrays:
        """The next adapter from (matrices, digest of what they answer to, weight).

        A and B are averaged separately: the mean of the products is not the product of the means, but only this
        keeps the rank. With a lossy wire, or an answer to an older broadcast, the mean *change* is added to the exact
        values.

        Raises:
            LanguageError: for no answer, or weights that do not sum to something positive.
        """
        total = float(sum(weight for _, _, weight in answers))
        if not answers or not total > 0:
            raise LanguageError(f"language aggregation: expected answers of positive weight, got {len(answers)}")
        plain = self._wire == "fp32" and all(digest == self._latest for _, digest, _ in answers)
        out: Arrays = {}
        for key, value in self.exact.items():
            new = np.zeros(value.shape) if plain else value.astype(np.float64)
            for matrices, digest, weight in answers:
                term = matrices[key].astype(np.float64)
                new += (weight / total) * (term if plain else term - self._sent[digest][key])
            out[key] = new.astype(np.float32)
        return out

    def change(self, arrays: Arrays, adapter_digest: str) -> np.ndarray:
        """What an answer would change (P,), float64, against the broadcast that it answers to; keys in sorted order."""
        sent = self._sent[adapter_digest]
        parts = [arrays[key].astype(np.float64).ravel() - sent[key].ravel() for key in sorted(self.exact)]
        return np.concatenate(parts)

    def moved(self, change: np.ndarray) -> Arrays:
        """The exact values with a change (P,) of `change`'s order."""
        out, rest = {}, change
        for key in sorted(self.exact):
            value = self.exact[key]
            out[key] = (value + rest[: value.size].reshape(value.shape)).astype(np.float32)
            rest = rest[value.size :]
        return {key: out[key] for key in self.exact}

    def set(self, arrays: Arrays) -> None:
        """Put exact values into the adapter.

        Raises:
            LanguageError: where they are another adapter's.
        """
        check_arrays(arrays, self._adapter.shapes(), ADAPTER)
        self.exact = {key: value.copy() for key, value in arrays.items()}
        self._adapter.load(self.exact)
