"""Readouts: expectation values (N, K) and the readout's weights -> log-probabilities (N, C), nats, and back.

`scale`: logits = s E. `scale-bias`: logits = s E + b. `linear`: logits = E W^T + b. `parity`, `bit`: E are the
probabilities themselves. The logit scale s is trained through its logarithm, so that it stays positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llm_qfl.federation.types import Array

FLOOR = 1e-10  # of a probability under the logarithm
START_SCALE = 3.0  # expectation values lie in [-1, 1]: a softmax of them alone is never sure

PROBABILITIES = ("parity", "bit")


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

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the readout's weights, in their order."""
        scale, bias = ("readout/log-scale",), tuple(f"readout/bias[{c}]" for c in range(self.classes))
        if self.name in PROBABILITIES:
            return ()
        if self.name == "linear":
            return tuple(f"readout/weight[{c},{k}]" for c in range(self.classes) for k in range(self.outputs)) + bias
        return scale + bias if self.name == "scale-bias" else scale

    def initial(self, rng: np.random.Generator) -> Array:
        """First weights: `linear` starts near `scale`, an output per class as far as they go."""
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
        """(N, C) from expectation values (N, K) and weights (R,); a probability below 1e-10 counts as 1e-10."""
        if self.name in PROBABILITIES:
            return np.asarray(np.log(np.maximum(values, FLOOR)))
        logits = self._logits(values, weights)
        # scipy.special.log_softmax does the same at ten times the cost on a handful of rows
        logits = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    def pull_back(self, values: Array, weights: Array, logp: Array, by_logp: Array) -> tuple[Array, Array]:
        """Chain rule, row by row, through the map that gave `logp`.

        Args:
            values: expectation values (N, K).
            weights: (R,).
            logp: what `log_probabilities` gave for them (N, C).
            by_logp: derivative of something by `logp` (N, C).

        Returns:
            Its derivatives by the values (N, K), and by the weights for each row (N, R).
        """
        if self.name in PROBABILITIES:
            return np.where(values > FLOOR, by_logp / np.maximum(values, FLOOR), 0.0), np.zeros((len(values), 0))
        by_logits = by_logp - np.exp(logp) * by_logp.sum(axis=1, keepdims=True)
        if self.name == "linear":
            by_matrix = (by_logits[:, :, None] * values[:, None, :]).reshape(len(values), -1)
            return by_logits @ self._matrix(weights), np.concatenate([by_matrix, by_logits], axis=1)
        scale = np.exp(weights[0])
        by_scale = scale * (by_logits * values).sum(axis=1, keepdims=True)
        by_weights = np.concatenate([by_scale, by_logits], axis=1) if self.name == "scale-bias" else by_scale
        return by_logits * scale, by_weights

    def _matrix(self, weights: Array) -> Array:
        return weights[: -self.classes].reshape(self.classes, self.outputs)

    def _logits(self, values: Array, weights: Array) -> Array:
        if self.name == "linear":
            return np.asarray(values @ self._matrix(weights).T + weights[-self.classes :])
        logits = values * np.exp(weights[0])
        return np.asarray(logits + weights[1:] if self.name == "scale-bias" else logits)
