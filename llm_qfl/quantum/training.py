"""The local optimizer loop: explicit start point, budget in objective evaluations, best-seen point, history.

A loss at one point costs 1 evaluation, a gradient 2G+1, whatever the backend; circuits are evaluations times rows.
Adam and SPSA are written out here because the libraries' own run to their end with neither a budget nor minibatches
nor a generator of ours (qiskit-machine-learning's SPSA draws from a global one); COBYLA is SciPy's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize

from llm_qfl.federation.config import TrainingConfig
from llm_qfl.federation.errors import ConfigError
from llm_qfl.federation.types import Array, Labels, Rows, Spent
from llm_qfl.quantum.model import QNNModel

ADAM_DECAY, ADAM_EPSILON = (0.9, 0.999), 1e-8  # Kingma and Ba 2015
SPSA_ALPHA, SPSA_GAMMA, SPSA_PERTURBATION = 0.602, 0.101, 0.1  # Spall 1998


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What local training found.

    Attributes:
        theta: the best-seen point (P,); with minibatches the last one: losses of different batches do not compare.
        first_theta: the first evaluated point: the one that training was started at.
        first_loss: training loss there, nats.
        best_loss: training loss at `theta`, nats; with minibatches that of the last batch before it.
        history: (evaluations so far, loss), in the order of evaluation.
        spent: evaluations, circuits and what the simulator really did.
    """

    theta: Array
    first_theta: Array
    first_loss: float
    best_loss: float
    history: tuple[tuple[int, float], ...]
    spent: Spent


@dataclass(eq=False)
class Objective:
    """Counts what is evaluated and remembers the best point."""

    model: QNNModel
    rows: Rows
    l2: float
    seen: list[tuple[int, float, Array]] = field(default_factory=list)
    evaluations: int = 0
    circuits: int = 0
    simulated: int = 0

    def loss(self, theta: Array) -> float:
        """Loss on all rows; one evaluation."""
        value = self.model.loss(theta, self.rows.x, self.rows.y) + self.l2 * float(theta @ theta)
        self._count(theta, value, 1, len(self.rows), sweeps=1)
        return value

    def loss_and_gradient(self, theta: Array, batch: Rows | None = None) -> tuple[float, Array]:
        """Loss and gradient on all rows or a batch; 2G+1 evaluations."""
        rows = self.rows if batch is None else batch
        value, gradient = self.model.loss_and_gradient(theta, rows.x, rows.y)
        value += self.l2 * float(theta @ theta)
        self._count(theta, value, self.model.gradient_cost, len(rows), sweeps=2)
        return value, gradient + 2 * self.l2 * theta

    def _count(self, theta: Array, value: float, evaluations: int, rows: int, sweeps: int) -> None:
        self.evaluations += evaluations
        self.circuits += evaluations * rows
        self.simulated += sweeps * rows
        self.seen.append((self.evaluations, value, np.array(theta)))


def round_budget(model: QNNModel, config: TrainingConfig) -> int:
    """Objective evaluations that `training.steps` cost in a round.

    Full-batch Adam and SPSA pay one more, so that their last point is seen; SPSA also pays for the first.
    """
    if config.optimizer == "adam":
        return config.steps * model.gradient_cost + (0 if config.batch_size else 1)
    if config.optimizer == "spsa":
        return 2 * config.steps + 2
    return max(config.steps, model.num_parameters + 2)


def train(
    model: QNNModel,
    rows: Rows,
    theta: Array,
    *,
    config: TrainingConfig,
    budget: int,
    learning_rate: float,
    rng: np.random.Generator,
) -> TrainingResult:
    """Train from `theta` until the budget is spent.

    Args:
        model: the QNN.
        rows: training rows, at least one.
        theta: (P,), the first point that is evaluated.
        config: optimizer, batch size, l2.
        budget: objective evaluations.
        learning_rate: Adam's step size, SPSA's first step, COBYLA's first trust region.
        rng: for batches and SPSA's directions.

    Raises:
        ConfigError: the budget does not pay for the optimizer's smallest run.
    """
    objective = Objective(model, rows, config.l2)
    least = _least_budget(model, config, len(rows))
    if budget < least:
        raise ConfigError(f"training: {config.optimizer} needs at least {least} evaluations a round, got {budget}")
    start = np.array(theta, np.float64)
    batched = config.optimizer == "adam" and 0 < config.batch_size < len(rows)
    if config.optimizer == "adam":
        last = _adam(objective, start, budget, learning_rate, config.batch_size if batched else 0, rng)
    elif config.optimizer == "spsa":
        last = _spsa(objective, start, budget, learning_rate, rng)
    else:
        last = _cobyla(objective, start, budget, learning_rate)
    evaluations, best, point = objective.seen[-1] if batched else min(objective.seen, key=lambda item: item[1])
    del evaluations
    return TrainingResult(
        theta=last if batched else point,
        first_theta=objective.seen[0][2],
        first_loss=objective.seen[0][1],
        best_loss=best,
        history=tuple((count, value) for count, value, _ in objective.seen),
        spent=Spent(objective.evaluations, objective.circuits, simulated_circuits=objective.simulated),
    )


def _least_budget(model: QNNModel, config: TrainingConfig, rows: int) -> int:
    if config.optimizer == "adam":
        return model.gradient_cost
    return 3 if config.optimizer == "spsa" else model.num_parameters + 2


def _batches(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Without end: every row once in each pass, in a fresh order; the rest of a pass begins the next."""
    order: Labels = np.zeros(0, np.intp)
    while True:
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(len(rows))])
        taken, order = order[:size], order[size:]
        yield Rows(rows.x[taken], rows.y[taken])


def adam_steps(theta: Array, learning_rate: float, steps: int, gradient_at: Callable[[Array], Array]) -> Array:
    """Adam (Kingma and Ba 2015, Algorithm 1), its moments starting at zero."""
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, steps + 1):
        gradient = gradient_at(theta)
        first = ADAM_DECAY[0] * first + (1 - ADAM_DECAY[0]) * gradient
        second = ADAM_DECAY[1] * second + (1 - ADAM_DECAY[1]) * gradient**2
        mean, square = first / (1 - ADAM_DECAY[0] ** step), second / (1 - ADAM_DECAY[1] ** step)
        theta = theta - learning_rate * mean / (np.sqrt(square) + ADAM_EPSILON)
    return theta


def _adam(objective: Objective, theta: Array, budget: int, rate: float, batch: int, rng: np.random.Generator) -> Array:
    cost = objective.model.gradient_cost
    batches = _batches(objective.rows, batch, rng) if batch else None

    def gradient_at(point: Array) -> Array:
        return objective.loss_and_gradient(point, None if batches is None else next(batches))[1]

    steps = budget // cost
    last = adam_steps(theta, rate, steps, gradient_at)
    if batches is None and budget - steps * cost >= 1:
        objective.loss(last)  # so that the last point can be the best seen
    return last


def _spsa(objective: Objective, theta: Array, budget: int, rate: float, rng: np.random.Generator) -> Array:
    objective.loss(theta)
    steps = (budget - 2) // 2
    stability = 0.1 * max(steps, 1)
    for step in range(steps):
        width = SPSA_PERTURBATION / (step + 1) ** SPSA_GAMMA
        # the first step is `rate` long in every coordinate of a unit slope
        gain = rate * ((1 + stability) / (step + 1 + stability)) ** SPSA_ALPHA
        direction = rng.choice([-1.0, 1.0], size=len(theta))
        slope = objective.loss(theta + width * direction) - objective.loss(theta - width * direction)
        theta = theta - gain * slope / (2 * width) * direction
    objective.loss(theta)
    return theta


def _cobyla(objective: Objective, theta: Array, budget: int, rate: float) -> Array:
    found = minimize(objective.loss, theta, method="COBYLA", options={"maxiter": budget, "rhobeg": rate, "tol": 1e-6})
    return np.asarray(found.x)
