"""Distillation: the site's own language model as a teacher of its own QNN, on the same rows.

    J = (1 - lambda) CE(y, p) + lambda tau^2 KL(q^tau || p^tau),   p^tau ~ p^(1/tau),  q^tau ~ q^(1/tau)

The form is Hinton et al.'s (arXiv 1503.02531); LLM-QFL's own was not published, which is why weight, temperature and
direction are keys of `agent`. Budgets follow the plain cross-entropy, which comes with it, never J.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_qfl.federation.config_agent import Direction
from llm_qfl.federation.errors import DataError
from llm_qfl.federation.types import Array, Labels

FLOOR = 1e-10  # of a probability under the logarithm, the teacher's and the student's


@dataclass(frozen=True)
class Distillation:
    """The loss of a round.

    Attributes:
        weight: lambda, in [0, 1].
        temperature: tau, above 0.
        direction: `forward`, KL(teacher || student), or `reverse`, KL(student || teacher).
    """

    weight: float
    temperature: float = 2.0
    direction: Direction = "forward"

    def __post_init__(self) -> None:
        # NaN fails both comparisons
        if not 0 <= self.weight <= 1 or not 0 < self.temperature < np.inf:
            raise DataError(
                f"distillation: expected a weight in [0, 1] and a temperature above 0, got {self.weight} and "
                f"{self.temperature}"
            )

    def row_losses(self, logp: Array, y: Labels, soft: Array) -> tuple[Array, Array]:
        """J of each row, nats, and its derivative by the log-probabilities.

        Args:
            logp: the student's log-probabilities (N, C), nats.
            y: labels (N,).
            soft: the teacher's probabilities (N, C), at temperature 1.

        Returns:
            J (N,) and dJ/d logp (N, C), for `Readout.pull_back`.
        """
        rows = np.arange(len(y))
        by_logp = np.zeros_like(logp)
        by_logp[rows, y] = self.weight - 1.0
        losses = (self.weight - 1.0) * logp[rows, y]
        if self.weight == 0:
            return losses, by_logp
        divergence, by_divergence = self._divergence(logp, soft)
        scale = self.weight * self.temperature**2
        return losses + scale * divergence, by_logp + scale * by_divergence

    def _divergence(self, logp: Array, soft: Array) -> tuple[Array, Array]:
        """KL of each row and its derivative by logp."""
        floor = np.log(FLOOR)
        raised = np.maximum(logp, floor)
        log_student = tempered(raised, self.temperature)
        log_teacher = tempered(np.log(np.maximum(soft, FLOOR)), self.temperature)
        student, teacher = np.exp(log_student), np.exp(log_teacher)
        apart = log_student - log_teacher
        if self.direction == "forward":
            value = -(teacher * apart).sum(axis=1)
            by_raised = (student - teacher) / self.temperature
        else:
            value = (student * apart).sum(axis=1)
            by_raised = student * (apart - value[:, None]) / self.temperature
        return np.maximum(value, 0.0), np.where(logp > floor, by_raised, 0.0)


@dataclass(frozen=True, eq=False)
class Lesson:
    """A distillation with the soft labels of the rows at hand.

    Attributes:
        term: the loss.
        soft: the teacher's probabilities (N, C) of exactly these rows.
    """

    term: Distillation
    soft: Array

    def row_losses(self, logp: Array, y: Labels) -> tuple[Array, Array]:
        """See Distillation."""
        return self.term.row_losses(logp, y, self.soft)


def tempered(logits: Array, temperature: float) -> Array:
    """Log-probabilities (N, C) of softmax(logits / temperature), nats."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    return np.asarray(scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True)))


def checked_soft(soft: Array, rows: int, classes: int) -> Array:
    """Soft labels of exactly these rows, as float64.

    Raises:
        DataError: another shape, a number that is negative or not finite, or a row that does not sum to one.
    """
    found = np.asarray(soft, np.float64)
    if found.shape != (rows, classes):
        raise DataError(f"soft labels: expected ({rows}, {classes}), got {found.shape}: of other rows or classes?")
    if not (np.isfinite(found).all() and (found >= 0).all()):
        raise DataError("soft labels: expected probabilities, got numbers that are negative or not finite")
    if rows and np.abs(found.sum(axis=1) - 1).max() > 1e-6:
        raise DataError("soft labels: expected rows that sum to one; give probabilities, not logits")
    return found
