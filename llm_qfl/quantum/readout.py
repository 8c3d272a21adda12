"""Readouts: expectation values (N, K) and the readout's weights -> log-probabilities (N, C), nats, and back.

`scale`: logits = s E. `scale-bias`: logits = s E + b. `linear`: logits = E W^T + b. `parity`, `bit`: E are the
probabilities themselves. The logit scale is trained through its exponent, so that it stays positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from llm_qfl.federation.types import Array

FLOOR = 1e-10  # of a probability under the logarithm
START_SCALE = 3.0  # expectation values lie in [-1, 1]: a softmax of them alone is never sure


@dataclass(frozen=True)
class Readout:
    """A readout by name.

    Attributes:
        name: as in `quantum.readout`.
        outputs: K, the observables.
        classes: C.
    """

    name: str
    outputs: int
    classes: int

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the readout's weights."""
        scale, bias = ("readout/log-scale",), tuple(f"readout/bias[{c}]" for c in range(self.classes))
        if self.name == "scale":
            return scale
        if self.name == "scale-bias":
            return scale + bias
        if self.name == "linear":
            return tuple(f"readout/weight[{c},{k}]" for c in range(self.classes) for k in range(self.outputs)) + bias
        return ()

    def initial(self, rng: np.random.Generator) -> Array:
        """First weights."""
        if self.name == "linear":
            weights = rng.normal(scale=0.1, size=(self.classes, self.outputs))
            for c in range(min(self.classes, self.outputs)):
                weights[c, c] += START_SCALE
            return np.concatenate([weights.ravel(), np.zeros(self.classes)])
        first = np.zeros(len(self.parameter_names))
        if len(first):
            first[0] = np.log(START_SCALE)
        return first

    def log_probabilities(self, values: Array, weights: Array) -> Array:
        """(N, C) from expectation values (N, K)."""
        if self.name in ("parity", "bit"):
            return np.asarray(np.log(np.clip(values, FLOOR, 1.0)))
        return np.asarray(log_softmax(self._logits(values, weights), axis=1))

    def pull_back(self, values: Array, weights: Array, gradient: Array) -> tuple[Array, Array]:
        """Chain rule from d/d log-probabilities (N, C) to d/d values (N, K) and d/d weights, summed over rows."""
        if self.name in ("parity", "bit"):
            inside = values > FLOOR
            return np.where(inside, gradient / np.maximum(values, FLOOR), 0.0), np.zeros(0)
        p = np.exp(log_softmax(self._logits(values, weights), axis=1))
        logits = gradient - p * gradient.sum(axis=1, keepdims=True)
        if self.name == "linear":
            matrix = weights[: -self.classes].reshape(self.classes, self.outputs)
            return logits @ matrix, np.concatenate([(logits.T @ values).ravel(), logits.sum(axis=0)])
        scale = np.exp(weights[0])
        by_scale = np.array([np.sum(logits * values) * scale])
        by_bias = logits.sum(axis=0) if self.name == "scale-bias" else np.zeros(0)
        return logits * scale, np.concatenate([by_scale, by_bias])

    def _logits(self, values: Array, weights: Array) -> Array:
        if self.name == "linear":
            matrix = weights[: -self.classes].reshape(self.classes, self.outputs)
            return values @ matrix.T + weights[-self.classes :]
        logits = values * np.exp(weights[0])
        return logits + weights[1:] if self.name == "scale-bias" else logits
