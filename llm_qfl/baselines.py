"""Logistic regression and a small network, trained federated beside the QNN: what a report compares it with.

Same features, rows, rounds, steps and batches; numpy only. They count in no budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llm_qfl.federation.config import BaselinesConfig
from llm_qfl.federation.types import Array, Arrays, Labels, Rows, Scores

_DECAY, _EPSILON = (0.9, 0.99), 1e-2  # Adam's, as for the QNN


@dataclass(frozen=True)
class Baseline:
    """A classifier with `hidden` tanh units in one layer; without them, multinomial logistic regression.

    Attributes:
        name: `logistic` or `mlp`.
        inputs: D.
        hidden: units, 0 for logistic regression.
        classes: C.
    """

    name: str
    inputs: int
    hidden: int
    classes: int

    @property
    def num_parameters(self) -> int:
        """All weights and biases."""
        if not self.hidden:
            return (self.inputs + 1) * self.classes
        return (self.inputs + 1) * self.hidden + (self.hidden + 1) * self.classes

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """First arrays: zeros for logistic regression (convex), Glorot-normal for the network's layers."""
        if not self.hidden:
            return {"w": np.zeros((self.inputs, self.classes)), "b": np.zeros(self.classes)}
        spread_in = np.sqrt(2 / (self.inputs + self.hidden))
        spread_out = np.sqrt(2 / (self.hidden + self.classes))
        return {
            "w0": rng.normal(scale=spread_in, size=(self.inputs, self.hidden)),
            "b0": np.zeros(self.hidden),
            "w": rng.normal(scale=spread_out, size=(self.hidden, self.classes)),
            "b": np.zeros(self.classes),
        }

    def log_probabilities(self, arrays: Arrays, x: Array) -> Array:
        """(N, C), nats."""
        return self._forward(arrays, x)[1]

    def loss_and_gradient(self, arrays: Arrays, x: Array, y: Labels, l2: float) -> tuple[float, dict[str, Array]]:
        """Mean cross-entropy (nats) plus l2 times the squared norm of all arrays, and its gradient."""
        seen, logp = self._forward(arrays, x)
        rows = np.arange(len(y))
        loss = float(-logp[rows, y].mean()) + l2 * sum(float(np.sum(a * a)) for a in arrays.values())
        back = np.exp(logp)
        back[rows, y] -= 1.0
        back /= len(y)
        gradient = {"w": seen.T @ back, "b": back.sum(axis=0)}
        if self.hidden:
            inner = (back @ arrays["w"].T) * (1 - seen * seen)
            gradient |= {"w0": x.T @ inner, "b0": inner.sum(axis=0)}
        return loss, {name: gradient[name] + 2 * l2 * arrays[name] for name in arrays}

    def _forward(self, arrays: Arrays, x: Array) -> tuple[Array, Array]:
        """What the last layer sees (N, hidden or D), and log-probabilities (N, C)."""
        seen = np.tanh(x @ arrays["w0"] + arrays["b0"]) if self.hidden else x
        logits = seen @ arrays["w"] + arrays["b"]
        logits = logits - logits.max(axis=1, keepdims=True)
        return seen, np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    def scores(self, arrays: Arrays, rows: Rows) -> Scores:
        """Sums over rows; zeros where there are none."""
        if not len(rows):
            return Scores(0.0, np.zeros(self.classes, np.intp), np.zeros(self.classes, np.intp))
        return Scores.of(self.log_probabilities(arrays, rows.x), rows.y)

    def train(
        self,
        arrays: Arrays,
        rows: Rows,
        *,
        steps: int,
        learning_rate: float,
        l2: float,
        batch_size: int,
        rng: np.random.Generator,
    ) -> dict[str, Array]:
        """Adam from the received arrays.

        Args:
            arrays: where it starts.
            rows: training rows, at least one.
            steps: of Adam.
            learning_rate: Adam's step size.
            l2: weight of the arrays' squared norm in the loss.
            batch_size: rows a step, drawn afresh; 0 takes all.
            rng: for the batches.

        Returns:
            As for the QNN: the best-seen arrays; with minibatches the last ones.
        """
        now = {name: np.array(array) for name, array in arrays.items()}
        first = {name: np.zeros_like(array) for name, array in now.items()}
        second = {name: np.zeros_like(array) for name, array in now.items()}
        batched = 0 < batch_size < len(rows)
        best, least = now, np.inf
        for step in range(1, steps + 1):
            chosen = rng.permutation(len(rows))[:batch_size] if batched else slice(None)
            loss, gradient = self.loss_and_gradient(now, rows.x[chosen], rows.y[chosen], l2)
            if loss < least:
                best, least = now, loss
            rate = learning_rate * np.sqrt(1 - _DECAY[1] ** step) / (1 - _DECAY[0] ** step)
            for name, slope in gradient.items():
                first[name] = _DECAY[0] * first[name] + (1 - _DECAY[0]) * slope
                second[name] = _DECAY[1] * second[name] + (1 - _DECAY[1]) * slope * slope
            now = {name: now[name] - rate * first[name] / (np.sqrt(second[name]) + _EPSILON) for name in now}
        last = self.loss_and_gradient(now, rows.x, rows.y, l2)[0]
        return now if batched or last < least else best


@lru_cache(maxsize=16)
def make_baselines(
    num_features: int, classes: int, qnn_parameters: int, config: BaselinesConfig
) -> Mapping[str, Baseline]:
    """Both baselines; the network has `config.hidden` units, or about as many parameters as the QNN."""
    per_unit = num_features + 1 + classes
    hidden = config.hidden or max(2, round((qnn_parameters - classes) / per_unit))
    return {
        "logistic": Baseline("logistic", num_features, 0, classes),
        "mlp": Baseline("mlp", num_features, hidden, classes),
    }
