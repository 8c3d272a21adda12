"""DP-SGD for the QNN (Abadi et al., CCS 2016): gradients clipped row by row, Gaussian noise, Poisson samples.

The last iterate is returned, not the best-seen one: which point is best is told by the rows. No loss is evaluated, for
the same reason. What follows the noise (Adam, the pull of `training.l2`) looks at no row and costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm_qfl.federation.errors import DataError
from llm_qfl.federation.privacy.noise import SecretNoise
from llm_qfl.federation.types import Array, Rows, Spent
from llm_qfl.quantum.model import QNNModel
from llm_qfl.quantum.training import adam_steps


@dataclass(frozen=True)
class RowPrivacy:
    """How a row is hidden.

    Attributes:
        clip: longest gradient of a row, Euclidean.
        noise: standard deviation of the noise on a sum of gradients, over `clip`.
        rate: probability with which a row is in a step.
    """

    clip: float
    noise: float
    rate: float


@dataclass(frozen=True, eq=False)
class PrivateResult:
    """What private training left.

    Attributes:
        theta: (P,), the last iterate.
        first_theta: (P,), where the first gradient was taken.
        spent: evaluations; circuits of the expected sample size, since the true one is not covered.
    """

    theta: Array
    first_theta: Array
    spent: Spent


def clipped(gradients: Array, clip: float) -> Array:
    """Rows (N, P), each no longer than `clip`.

    Raises:
        DataError: a gradient that is not finite, which no scaling bounds.
    """
    if not np.isfinite(gradients).all():
        raise DataError("training: a row's gradient is not finite; nothing was sent")
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    return np.asarray(gradients * (clip / np.maximum(lengths, clip)))


def noisy_gradient(gradients: Array, privacy: RowPrivacy, rows: int, noise: SecretNoise) -> Array:
    """The noisy sum of clipped gradients over the expected sample size (P,).

    Args:
        gradients: of the rows that the sample holds (N, P), N may be 0.
        privacy: clip, noise and rate.
        rows: that the sample was drawn from.
        noise: the site's.
    """
    size = gradients.shape[1]
    total = clipped(gradients, privacy.clip).sum(axis=0) + noise.gaussian(size, privacy.noise * privacy.clip)
    return np.asarray(total / (privacy.rate * rows))


def train_privately(
    model: QNNModel,
    rows: Rows,
    theta0: Array,
    *,
    steps: int,
    learning_rate: float,
    l2: float,
    privacy: RowPrivacy,
    noise: SecretNoise,
) -> PrivateResult:
    """Adam from `theta0` on noisy gradients.

    Args:
        model: the QNN.
        rows: training rows, at least one.
        theta0: (P,), where the first gradient is taken.
        steps: gradients; each is one release of the accountant's.
        learning_rate: Adam's.
        l2: weight of theta's squared norm.
        privacy: clip, noise and rate.
        noise: the site's stream for this task.

    Raises:
        DataError: no rows, or a gradient that is not finite.
    """
    if not len(rows):
        raise DataError("training: the site has no training rows; bring more or lower data.validation-fraction")

    def gradient_at(theta: Array) -> Array:
        chosen = np.flatnonzero(noise.sample(len(rows), privacy.rate))
        found = np.zeros((0, model.num_parameters))
        if len(chosen):
            found = model.jacobian(theta, rows.x[chosen], rows.y[chosen])[1]
        return noisy_gradient(found, privacy, len(rows), noise) + 2 * l2 * theta

    start = np.array(theta0, np.float64)
    theta = adam_steps(start, learning_rate, steps, gradient_at)
    expected = max(1, round(privacy.rate * len(rows)))
    evaluations = steps * model.gradient_cost
    sweeps = steps * model.gradient_sweeps(expected) * expected
    return PrivateResult(theta, start, Spent(evaluations, evaluations * expected, simulated_circuits=sweeps))
