"""The quantum neural network: circuit, backend and readout behind theta.

theta (P,) float64: the circuit's weights in the order of its weight parameters, then the readout's.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.types import Array, Labels, Rows, Scores
from llm_qfl.quantum.backends import make_backend
from llm_qfl.quantum.circuits import ModelCircuit, build_circuit
from llm_qfl.quantum.readout import Readout


class QNNModel:
    """A classifier over rows (N, D) with C classes.

    Args:
        config: circuit, readout and backend.
        classes: C.
        circuit: a circuit to use in place of the configured one (from a run folder).

    Raises:
        CircuitError: the circuit cannot be built or simulated.
        BackendError: no such backend.
    """

    def __init__(self, config: QuantumConfig, classes: int, circuit: ModelCircuit | None = None) -> None:
        self.config, self.classes = config, classes
        self.circuit = circuit or build_circuit(config, classes)
        self.readout = Readout(config.readout, len(self.circuit.observables), classes)
        self._split = len(self.circuit.weight_parameters)
        names = tuple(parameter.name for parameter in self.circuit.weight_parameters)
        self.parameter_names = names + self.readout.parameter_names
        self._backend = make_backend(config.backend, self.circuit, config.precision)

    @property
    def num_parameters(self) -> int:
        """P."""
        return len(self.parameter_names)

    @property
    def num_inputs(self) -> int:
        """D."""
        return len(self.circuit.input_parameters)

    @property
    def gradient_cost(self) -> int:
        """Objective evaluations of one gradient: 2G+1."""
        return 2 * self.circuit.gates + 1

    def initial_theta(self, rng: np.random.Generator) -> Array:
        """A first vector: small angles, and an input scale of about one where the circuit has one."""
        circuit = rng.normal(scale=0.1, size=self._split)
        if self.circuit.name == "reuploading":
            circuit[0::4] += 1.0
        elif self.circuit.name != "reuploading":
            circuit = rng.uniform(-np.pi / 4, np.pi / 4, self._split)
        return np.concatenate([circuit, self.readout.initial(rng)])

    def log_probabilities(self, theta: Array, x: Array) -> Array:
        """(N, C), nats."""
        values = self._backend.expectations(x, theta[: self._split])
        return self.readout.log_probabilities(values, theta[self._split :])

    def loss(self, theta: Array, x: Array, y: Labels) -> float:
        """Mean cross-entropy of rows (N, D) with labels (N,), nats. Scores theta and nothing else."""
        return float(-np.mean(self.log_probabilities(theta, x)[np.arange(len(y)), y]))

    def loss_and_gradient(self, theta: Array, x: Array, y: Labels) -> tuple[float, Array]:
        """Mean cross-entropy (nats) and its gradient (P,)."""
        weights, rest = theta[: self._split], theta[self._split :]
        rows = np.arange(len(y))
        found: dict[str, Array] = {}

        def cotangent(values: Array) -> Array:
            logp = self.readout.log_probabilities(values, rest)
            found["loss"] = -np.mean(logp[rows, y])
            by_logp = np.zeros_like(logp)
            by_logp[rows, y] = -1.0 / len(y)
            by_values, found["readout"] = self.readout.pull_back(values, rest, by_logp)
            return by_values

        _, by_weights = self._backend.pull_back(x, weights, cotangent)
        return float(found["loss"]), np.concatenate([by_weights, found["readout"]])

    def jacobian(self, theta: Array, x: Array, y: Labels) -> tuple[Array, Array]:
        """Cross-entropy of each row (N,) and its gradient (N, P), as clipping row by row needs it."""
        weights, rest = theta[: self._split], theta[self._split :]
        values, gradient = self._backend.jacobian(x, weights)
        logp = self.readout.log_probabilities(values, rest)
        rows = np.arange(len(y))
        by_rows = np.zeros((len(y), self.num_parameters))
        for row in rows:
            by_logp = np.zeros((1, self.classes))
            by_logp[0, y[row]] = -1.0
            by_values, by_readout = self.readout.pull_back(values[row : row + 1], rest, by_logp)
            by_rows[row, : self._split] = by_values[0] @ gradient[row]
            by_rows[row, self._split :] = by_readout
        return -logp[rows, y], by_rows

    def scores(self, theta: Array, rows: Rows) -> Scores:
        """Sums over rows; zeros where there are none."""
        if not len(rows):
            return Scores(0.0, np.zeros(self.classes, np.intp), np.zeros(self.classes, np.intp))
        return Scores.of(self.log_probabilities(theta, rows.x), rows.y)


@lru_cache(maxsize=8)
def get_model(config: QuantumConfig, classes: int) -> QNNModel:
    """The model of a configuration, built once a process."""
    return QNNModel(config, classes)
