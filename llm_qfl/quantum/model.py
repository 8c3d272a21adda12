"""The quantum neural network: circuit, backend and readout behind theta.

theta (P,) float64: the circuit's weights in the order of its weight parameters, then the readout's.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np

from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.types import Array, Labels, Rows, Scores, Spent
from llm_qfl.quantum.backends import make_backend
from llm_qfl.quantum.circuits import ModelCircuit, build_circuit
from llm_qfl.quantum.distillation import Lesson
from llm_qfl.quantum.readout import Readout
from llm_qfl.quantum.scope import Place, Scope

# Features have unit variance and reach +-pi. With a scale of 1 the rare ones wrap around the circle: on breast-cancer's
# principal components .3 to .5 lost less on validation rows than 1 did, and spread less over seeds.
START_INPUT_SCALE = 0.3


class QNNModel:
    """A classifier over rows (N, D) with C classes.

    Args:
        config: circuit, readout and backend.
        classes: C.
        circuit: a circuit to use in place of the configured one (from a run folder).
        place: what the node gives the backend; None on a process that is no node.

    Attributes:
        parameter_names: of theta: the circuit's weights, then the readout's.
        num_parameters: P.
        num_inputs: D.
        gradient_cost: objective evaluations of one gradient, 2G+1; the readout's weights cost nothing.

    Raises:
        CircuitError: the circuit cannot be built or simulated.
        BackendError: no such backend.
    """

    def __init__(
        self, config: QuantumConfig, classes: int, circuit: ModelCircuit | None = None, place: Place | None = None
    ) -> None:
        self.config, self.classes = config, classes
        self.circuit = circuit or build_circuit(config, classes)
        self.readout = Readout(config.readout, len(self.circuit.observables), classes)
        self._split = len(self.circuit.weight_parameters)
        names = tuple(parameter.name for parameter in self.circuit.weight_parameters)
        self.parameter_names = names + self.readout.parameter_names
        self.num_parameters = len(self.parameter_names)
        self.num_inputs = len(self.circuit.input_parameters)
        self.gradient_cost = 2 * self.circuit.gates + 1
        self._backend = make_backend(config, self.circuit, place)

    def at(self, scope: Scope) -> QNNModel:
        """This model in another scope: its circuits run for that site, round and purpose, nothing spent yet."""
        moved = copy.copy(self)
        moved._backend = self._backend.at(scope)
        return moved

    @property
    def backend(self) -> str:
        """Where its circuits run, as in `quantum.backend`."""
        return self._backend.name

    @property
    def spent(self) -> Spent:
        """Shots, jobs, QPU and queue seconds of this model's circuits in its scope."""
        return self._backend.meter.spent

    def close(self) -> None:
        """The task is done: what its backend has open at a service is closed."""
        self._backend.close()

    def initial_theta(self, rng: np.random.Generator) -> Array:
        """A first vector: small angles; an input scale, where there is one, keeps +-pi far from a turn."""
        circuit = rng.normal(scale=0.1, size=self._split)
        if self.circuit.name == "reuploading":
            circuit[0::4] += START_INPUT_SCALE
        else:
            circuit = rng.uniform(-np.pi / 4, np.pi / 4, self._split)
        return np.concatenate([circuit, self.readout.initial(rng)])

    def log_probabilities(self, theta: Array, x: Array) -> Array:
        """(N, C), nats."""
        values = self._backend.expectations(x, theta[: self._split])
        return self.readout.log_probabilities(values, theta[self._split :])

    def loss(self, theta: Array, x: Array, y: Labels, lesson: Lesson | None = None) -> float:
        """Mean cross-entropy of rows (N, D), N > 0, with labels (N,), nats. Scores theta and nothing else.

        With a lesson, what training minimises: distillation in the cross-entropy's place.
        """
        logp = self.log_probabilities(theta, x)
        if lesson is not None:
            return float(lesson.row_losses(logp, y)[0].mean())
        return float(-logp[np.arange(len(y)), y].mean())

    def loss_and_gradient(self, theta: Array, x: Array, y: Labels, lesson: Lesson | None = None) -> tuple[float, Array]:
        """`loss` of rows (N, D), N > 0, with labels (N,), and its gradient (P,)."""
        weights, rest = theta[: self._split], theta[self._split :]
        gradient = np.empty(self.num_parameters)
        loss = 0.0

        def cotangent(values: Array) -> Array:
            nonlocal loss
            losses, by_values, by_rest = self._row_losses(values, rest, y, lesson)
            loss = float(losses.mean())
            gradient[self._split :] = by_rest.sum(axis=0) / len(y)
            return by_values / len(y)

        gradient[: self._split] = self._backend.pull_back(x, weights, cotangent)[1]
        return loss, gradient

    def gradient_sweeps(self, rows: int) -> int:
        """Sweeps over these rows that a simulator really does for one gradient."""
        return self._backend.gradient_sweeps(rows)

    def jacobian(self, theta: Array, x: Array, y: Labels, lesson: Lesson | None = None) -> tuple[Array, Array]:
        """Loss of each row (N,), nats, and its gradient (N, P), as clipping row by row needs it."""
        values, by_weights = self._backend.jacobian(x, theta[: self._split])
        losses, by_values, by_rest = self._row_losses(values, theta[self._split :], y, lesson)
        by_circuit = np.einsum("nk,nkp->np", by_values, by_weights)
        return losses, np.concatenate([by_circuit, by_rest], axis=1)

    def _row_losses(self, values: Array, rest: Array, y: Labels, lesson: Lesson | None) -> tuple[Array, Array, Array]:
        """Loss of each row (N,), its derivatives by the values (N, K) and the readout's weights (N, R)."""
        logp = self.readout.log_probabilities(values, rest)
        if lesson is not None:
            losses, by_logp = lesson.row_losses(logp, y)
        else:
            rows = np.arange(len(y))
            by_logp = np.zeros_like(logp)
            by_logp[rows, y] = -1.0
            losses = -logp[rows, y]
        return losses, *self.readout.pull_back(values, rest, logp, by_logp)

    def scores(self, theta: Array, rows: Rows) -> Scores:
        """Sums over rows; zeros where there are none."""
        if not len(rows):
            return Scores(0.0, np.zeros(self.classes, np.intp), np.zeros(self.classes, np.intp))
        return Scores.of(self.log_probabilities(theta, rows.x), rows.y)


@lru_cache(maxsize=8)
def get_model(config: QuantumConfig, classes: int, place: Place | None = None) -> QNNModel:
    """The model of a configuration, built once a process."""
    return QNNModel(config, classes, place=place)
