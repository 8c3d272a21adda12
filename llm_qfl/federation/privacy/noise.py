"""Noise that protects rows: from a secret that never leaves its owner, not from the run's seed.

The server knows the seed, and would subtract what comes from it. So a stream is keyed by HMAC-SHA-256 of the secret and
of *all* that the protected answer depends on: the task, the state, the rows. The same question gives the same answer,
which tells nothing new (a run that is resumed ends in the same bits); a question that differs in anything gets fresh
noise, or the difference of two answers would be free of it. numpy's generators are not made to withstand an adversary,
so the bits are SHAKE-256's. Each number is the sum of four Gaussians over two, which hides the gaps between floats
that give a single one away (Holohan and Braghin 2021; Opacus does the same).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_qfl.federation.types import Array

SECRET_BYTES = 32
_SUMMED = 4


def noise_key(secret: bytes, **about: str | float) -> bytes:
    """The key of one answer's noise.

    Args:
        secret: of the one who adds the noise; at least 32 bytes.
        about: everything that the answer depends on, by name.

    Raises:
        ValueError: a secret too short to be one.
    """
    if len(secret) < SECRET_BYTES:
        raise ValueError(f"noise: expected a secret of at least {SECRET_BYTES} bytes, got {len(secret)}")
    return hmac.new(secret, json.dumps(about, sort_keys=True).encode(), hashlib.sha256).digest()


def digest_arrays(*arrays: NDArray[Any]) -> str:
    """SHA-256 of arrays with their shapes and types, for `noise_key`."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape}{array.dtype.str}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


class SecretNoise:
    """A stream of random numbers from a key.

    Args:
        key: what `noise_key` gave.
    """

    def __init__(self, key: bytes) -> None:
        self._key, self._block = key, 0

    def gaussian(self, size: int, scale: float = 1.0) -> Array:
        """Independent Gaussians (size,) of mean 0 and standard deviation `scale`."""
        uniforms = self._uniforms(2 * _SUMMED * size).reshape(2, _SUMMED, size)
        lengths = np.sqrt(-2.0 * np.log(uniforms[0]))  # Box and Muller 1958
        return np.asarray(scale / np.sqrt(_SUMMED) * (lengths * np.cos(2 * np.pi * uniforms[1])).sum(axis=0))

    def sample(self, rows: int, rate: float) -> NDArray[np.bool_]:
        """A Poisson sample: each of `rows` rows is in it with probability `rate`, on its own (rows,)."""
        return np.asarray(self._uniforms(rows) < rate)

    def _uniforms(self, count: int) -> Array:
        """In (0, 1], 53 bits each."""
        self._block += 1
        data = hashlib.shake_256(self._key + self._block.to_bytes(8, "big")).digest(8 * count)
        bits = np.frombuffer(data, np.uint64) >> np.uint64(11)
        return (bits.astype(np.float64) + 1.0) * 2.0**-53
