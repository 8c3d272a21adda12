"""Expectation values and parameter-shift gradients of a batch: whatever is asked becomes one array of points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llm_qfl.federation.types import Array, Spent
from llm_qfl.quantum.sampled.angles import AngleCircuit
from llm_qfl.quantum.scope import Meter, Scope


@dataclass(frozen=True, eq=False)
class Drawn:
    """Expectation values (M, K) at M points, and what they cost."""

    values: Array
    spent: Spent


class PointRunner(Protocol):
    """Runs one circuit of angles at many points."""

    name: str

    def draw(self, points: Array, scope: Scope, call: int) -> Drawn:
        """Expectation values (M, K) at points (M, A).

        Args:
            points: angles.
            scope: for whom; its shots are of each circuit.
            call: number of this call within the scope.
        """

    def close(self) -> None:
        """Close what is open at a service."""


class ShiftBackend:
    """A Backend over a PointRunner.

    Args:
        runner: where points run.
        angles: the model's circuit of angles.
        scope: for whom and when.

    Attributes:
        name: as in `quantum.backend`.
        meter: what it has cost in this scope.
    """

    def __init__(self, runner: PointRunner, angles: AngleCircuit, scope: Scope) -> None:
        self._runner, self._angles, self._scope = runner, angles, scope
        self.name, self.meter = runner.name, Meter()

    def at(self, scope: Scope) -> ShiftBackend:
        """The same for another scope, its meter at zero."""
        return ShiftBackend(self._runner, self._angles, scope)

    def expectations(self, x: Array, weights: Array) -> Array:
        """See Backend. One PUB of N points."""
        return self._draw(self._angles.values(x, weights))

    def jacobian(self, x: Array, weights: Array) -> tuple[Array, Array]:
        """See Backend. One PUB of N (2G + 1) points: every angle that depends on weights shifted by +-pi/2."""
        base, trained = self._angles.values(x, weights), self._angles.trained
        rows, shifts = len(base), len(trained)
        points = np.repeat(base[:, None, :], 2 * shifts + 1, axis=1)
        for number, column in enumerate(trained):
            points[:, 1 + 2 * number, column] += np.pi / 2
            points[:, 2 + 2 * number, column] -= np.pi / 2
        drawn = self._draw(points.reshape(-1, base.shape[1])).reshape(rows, 2 * shifts + 1, -1)
        by_angle = (drawn[:, 1::2] - drawn[:, 2::2]).transpose(0, 2, 1) / 2
        return drawn[:, 0], self._angles.pull_back(by_angle, x, weights)

    def pull_back(self, x: Array, weights: Array, cotangent: Callable[[Array], Array]) -> tuple[Array, Array]:
        """See Backend. The values ride in the gradient's PUB."""
        values, gradient = self.jacobian(x, weights)
        return values, cotangent(values).reshape(-1) @ gradient.reshape(-1, gradient.shape[2])

    def gradient_sweeps(self, rows: int) -> int:
        """See Backend: points of a row in a gradient's PUB."""
        return 2 * len(self._angles.trained) + 1

    def close(self) -> None:
        """See Backend."""
        self._runner.close()

    def _draw(self, points: Array) -> Array:
        drawn = self._runner.draw(points, self._scope, self.meter.calls)
        self.meter.calls += 1
        self.meter.spent = self.meter.spent + drawn.spent
        return drawn.values
