"""The emulator as sites hold it: that of the next round, and that which was first distributed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from llm_qfl.language.lora import Arrays, LoraAdapter, digest_of_arrays
from llm_qfl.language.methods import EMULATOR, FIRST
from llm_qfl.language.wire import decode, encode

WIRE, FIRST_WIRE = "wire", "first-wire"  # in a checkpoint: both, as they are sent


class DistributedEmulator:
    """What of the emulator is sent, and how it is named.

    Args:
        lora: the server's emulator; with a lossy wire it holds the rounded values that sites get.
        wire: format of matrices on the wire.

    Attributes:
        lora: the emulator as the server computes with it.
        digest: of the values that sites must have in the next round.
        sent: these, as they are sent, `emulator/<layer>/<module>/<A|B>`.
        first: values (float32) as first distributed; features for the QNN come from that version in the whole run.
        first_sent: these, as they were sent.
    """

    digest: str
    sent: Arrays
    first: Arrays
    first_sent: Arrays

    def __init__(self, lora: LoraAdapter, wire: str) -> None:
        self.lora, self._wire = lora, wire
        self.publish(first=True)

    def publish(self, *, first: bool) -> None:
        """Fix what sites get from the emulator as it is now.

        Args:
            first: is this what is distributed before the first round?
        """
        self.sent = encode(EMULATOR, self.lora.arrays(), self._wire)
        self.lora.load(decode(EMULATOR, self.sent, self._wire, self.lora.shapes()))
        self.digest = self.lora.digest()
        if first:
            self.first, self.first_sent = self.lora.arrays(), self.sent

    @property
    def first_digest(self) -> str:
        """Of the values as first distributed."""
        return digest_of_arrays(self.first)

    def beside(self) -> Arrays:
        """The first version as it is sent beside a later one, to a site that lost it."""
        return {f"{FIRST}{key.removeprefix(EMULATOR)}": value for key, value in self.first_sent.items()}

    @contextlib.contextmanager
    def as_first(self) -> Iterator[None]:
        """With the emulator as it was first distributed."""
        now = self.lora.arrays()
        self.lora.load(self.first)
        try:
            yield
        finally:
            self.lora.load(now)

    def state(self) -> Arrays:
        """Both versions, for a checkpoint."""
        out = {f"{EMULATOR}/{key}": value for key, value in self.lora.arrays().items()}
        out |= {f"{FIRST}/{key}": value for key, value in self.first.items()}
        if self._wire != "fp32":  # rounding what was rounded may give other bits
            out |= {f"{WIRE}/{key}": value for key, value in self.sent.items()}
            out |= {f"{FIRST_WIRE}/{key}": value for key, value in self.first_sent.items()}
        return out

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` gave.

        Raises:
            LanguageError: where it is another plan's.
        """
        self.lora.load(decode(EMULATOR, arrays, "fp32", self.lora.shapes()))
        self.digest = self.lora.digest()
        self.first = decode(FIRST, arrays, "fp32", self.lora.shapes())
        self.sent = _part(arrays, WIRE) or encode(EMULATOR, self.lora.arrays(), "fp32")
        self.first_sent = _part(arrays, FIRST_WIRE) or encode(EMULATOR, self.first, "fp32")


def _part(arrays: Mapping[str, np.ndarray], name: str) -> Arrays:
    """What is called `<name>/...`, without that."""
    return {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
