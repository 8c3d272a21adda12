"""The local optimizer loop: explicit start point, budget in objective evaluations, best-seen point, history.

A loss at one point costs 1 evaluation, a gradient 2G+1, whatever the backend; circuits are evaluations times rows.
COBYLA is SciPy's. Adam and SPSA are written out: qiskit-machine-learning's Adam asks for loss and gradient apart and
its import takes 0.4 s of a process that a node starts for every message (a test holds that the points are the same);
its SPSA draws from a global generator and evaluates the last point outside its count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from llm_qfl.federation.backend_names import samples
from llm_qfl.federation.config import TrainingConfig
from llm_qfl.federation.errors import ConfigError, DataError
from llm_qfl.federation.types import Array, Labels, Rows, Spent
from llm_qfl.quantum.distillation import Distillation, Lesson, checked_soft
from llm_qfl.quantum.model import QNNModel

ADAM_DECAY = (0.9, 0.99)  # Kingma and Ba 2015; the second as in qiskit-machine-learning: rounds are short
# Not 1e-8: Adam starts anew in each round and would take steps of full length however flat the loss is, so that a site
# that has nothing left to learn (rows of one class, say) walks away from the average (docs/decisions/0005).
ADAM_EPSILON = 1e-2
SPSA_ALPHA, SPSA_GAMMA, SPSA_PERTURBATION = 0.602, 0.101, 0.2  # Spall 1998; Qiskit's perturbation


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What local training found.

    Losses are means over rows in nats, plus `training.l2` times theta's squared norm; with distillation they are its
    mixture, not the plain cross-entropy that budgets follow.

    Attributes:
        theta: the best-seen point (P,); the last one with minibatches and, but for COBYLA, on a backend that samples:
            losses of different batches, or draws, do not compare.
        first_theta: the first evaluated point: the one that training was started at.
        first_loss: training loss there; with minibatches on the first batch.
        best_loss: training loss at `theta`; with minibatches on the first batch, too.
        history: (evaluations so far, loss), in the order of evaluation; with minibatches each of its own batch.
        spent: evaluations, circuits and what the simulator really did.
    """

    theta: Array
    first_theta: Array
    first_loss: float
    best_loss: float
    history: tuple[tuple[int, float], ...]
    spent: Spent


@dataclass(eq=False)
class _Objective:
    """Counts what is evaluated and remembers every point."""

    model: QNNModel
    l2: float
    distillation: Distillation | None = None
    seen: list[tuple[int, float, Array]] = field(default_factory=list)
    evaluations: int = 0
    circuits: int = 0
    simulated: int = 0

    def loss(self, theta: Array, rows: Rows) -> float:
        """Loss; one evaluation."""
        value = self.model.loss(theta, rows.x, rows.y, *self._lesson(rows)) + self.l2 * float(theta @ theta)
        self._count(theta, value, 1, len(rows), 1)
        return value

    def gradient(self, theta: Array, rows: Rows) -> Array:
        """Gradient, and the loss on the way; 2G+1 evaluations."""
        value, gradient = self.model.loss_and_gradient(theta, rows.x, rows.y, *self._lesson(rows))
        value += self.l2 * float(theta @ theta)
        sweeps = self.model.gradient_sweeps(len(rows))
        self._count(theta, value, self.model.gradient_cost, len(rows), sweeps)
        return gradient + 2 * self.l2 * theta

    def _lesson(self, rows: Rows) -> tuple[Lesson, ...]:
        """What these rows are taught beside their labels, if anything."""
        if self.distillation is None or rows.soft is None:
            return ()
        return (Lesson(self.distillation, rows.soft),)

    def _count(self, theta: Array, value: float, evaluations: int, rows: int, sweeps: int) -> None:
        self.evaluations += evaluations
        self.circuits += evaluations * rows
        self.simulated += sweeps * rows
        self.seen.append((self.evaluations, value, np.array(theta)))


def round_budget(model: QNNModel, config: TrainingConfig) -> int:
    """Objective evaluations that `training.steps` cost in a round.

    Adam pays 2G+1 a step and SPSA 2; both pay one more for a loss at the last point, so that it can be the best seen,
    and SPSA one for the first, which its steps do not look at. COBYLA pays one a step, and SciPy's never takes fewer
    than P+2.
    """
    if config.optimizer == "adam":
        return config.steps * model.gradient_cost + 1
    if config.optimizer == "spsa":
        return 2 * config.steps + 2
    return max(config.steps, model.num_parameters + 2)


def least_budget(model: QNNModel, config: TrainingConfig) -> int:
    """The smallest budget that `train` accepts: one step of Adam or SPSA, P+2 for COBYLA."""
    return round_budget(model, config.model_copy(update={"steps": 1}))


def train(
    model: QNNModel,
    rows: Rows,
    theta0: Array,
    *,
    config: TrainingConfig,
    budget: int,
    learning_rate: float,
    rng: np.random.Generator,
    distillation: Distillation | None = None,
) -> TrainingResult:
    """Train from `theta0` with as many steps as the budget pays.

    Args:
        model: the QNN.
        rows: training rows, at least one.
        theta0: (P,), the first point that is evaluated.
        config: optimizer, batch size, l2; its steps and learning rate are not looked at.
        budget: objective evaluations, never exceeded; what a whole step cannot use stays unspent.
        learning_rate: Adam's step size, SPSA's first step, COBYLA's first trust region.
        rng: for batches and SPSA's directions.
        distillation: what the rows' soft labels do to the loss; None, or a weight of 0, leaves plain cross-entropy.

    Raises:
        ConfigError: the budget does not pay for one step.
        DataError: no rows, or rows without the soft labels that distillation needs.
    """
    if not len(rows):
        raise DataError("training: the site has no training rows; bring more or lower data.validation-fraction")
    if distillation is not None and distillation.weight == 0:
        distillation = None
    if distillation is not None:
        if rows.soft is None:
            raise DataError("training: distillation needs soft labels, these rows have none; train without it")
        checked_soft(rows.soft, len(rows), model.classes)
    least = least_budget(model, config)
    if budget < least:
        raise ConfigError(
            f"training: {config.optimizer} needs at least {least} objective evaluations a round with this circuit, "
            f"got {budget}; raise training.steps or take a smaller circuit"
        )
    batched = 0 < config.batch_size < len(rows)
    batches = _batches(rows, config.batch_size, rng) if batched else _same(rows)
    first_batch = next(batches)
    objective = _Objective(model, config.l2, distillation)
    start = np.array(theta0, np.float64)
    if config.optimizer == "adam":
        _adam(objective, start, (budget - 1) // model.gradient_cost, learning_rate, first_batch, batches)
    elif config.optimizer == "spsa":
        _spsa(objective, start, (budget - 2) // 2, learning_rate, first_batch, batches, rng)
    else:
        _cobyla(objective, start, budget, learning_rate, rows)
    _, first_loss, first_theta = objective.seen[0]
    # Of losses that were drawn the smallest is the luckiest, as of losses on different batches.
    last = batched or (samples(model.backend) and config.optimizer != "cobyla")
    _, best_loss, best_theta = objective.seen[-1] if last else min(objective.seen, key=lambda item: item[1])
    return TrainingResult(
        theta=best_theta,
        first_theta=first_theta,
        first_loss=first_loss,
        best_loss=best_loss,
        history=tuple((count, value) for count, value, _ in objective.seen),
        spent=Spent(objective.evaluations, objective.circuits, simulated_circuits=objective.simulated),
    )


def _same(rows: Rows) -> Iterator[Rows]:
    while True:
        yield rows


def _batches(rows: Rows, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Without end: every row once in each pass, in a fresh order; the rest of a pass begins the next batch."""
    order: Labels = np.zeros(0, np.intp)
    while True:
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(len(rows))])
        taken, order = order[:size], order[size:]
        yield rows.take(taken)


def adam_steps(theta: Array, learning_rate: float, steps: int, gradient_at: Callable[[Array], Array]) -> Array:
    """Adam (Kingma and Ba 2015, section 2, the form with the bias in the step size), moments starting at zero.

    Args:
        theta: (P,), where the first gradient is taken.
        learning_rate: step size.
        steps: gradients taken.
        gradient_at: gradient (P,) at a point.

    Returns:
        The point after the last step; no gradient was taken there.
    """
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    for step in range(1, steps + 1):
        gradient = gradient_at(theta)
        first = ADAM_DECAY[0] * first + (1 - ADAM_DECAY[0]) * gradient
        second = ADAM_DECAY[1] * second + (1 - ADAM_DECAY[1]) * gradient * gradient
        rate = learning_rate * np.sqrt(1 - ADAM_DECAY[1] ** step) / (1 - ADAM_DECAY[0] ** step)
        theta = theta - rate * first / (np.sqrt(second) + ADAM_EPSILON)
    return theta


def _adam(objective: _Objective, theta: Array, steps: int, rate: float, first: Rows, batches: Iterator[Rows]) -> None:
    def gradient_at(point: Array) -> Array:
        return objective.gradient(point, next(batches) if objective.seen else first)

    objective.loss(adam_steps(theta, rate, steps, gradient_at), first)


def _spsa(
    objective: _Objective,
    theta: Array,
    steps: int,
    rate: float,
    first: Rows,
    batches: Iterator[Rows],
    rng: np.random.Generator,
) -> None:
    """SPSA (Spall 1998) with gains relative to the slopes seen so far, so that `rate` needs no calibration.

    Every coordinate moves by `rate` in the first step. Both evaluations of a step see the same rows.
    """
    objective.loss(theta, first)
    squares = 0.0
    for step in range(1, steps + 1):
        rows = first if step == 1 else next(batches)
        width = SPSA_PERTURBATION / step**SPSA_GAMMA
        direction = rng.choice([-1.0, 1.0], size=len(theta))
        rise = objective.loss(theta + width * direction, rows) - objective.loss(theta - width * direction, rows)
        slope = rise / (2 * width)
        squares += slope * slope
        if squares > 0:
            theta = theta - rate / step**SPSA_ALPHA * slope / np.sqrt(squares / step) * direction
    objective.loss(theta, first)


def _cobyla(objective: _Objective, theta: Array, budget: int, rate: float, rows: Rows) -> None:
    from scipy.optimize import minimize  # half a second that only COBYLA needs

    def loss(point: Array) -> float:
        return objective.loss(point, rows)

    minimize(loss, theta, method="COBYLA", options={"maxiter": budget, "rhobeg": rate, "tol": 1e-6})
