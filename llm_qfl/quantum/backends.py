"""Where circuits run: one protocol. Today `exact`; devices join behind the same calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llm_qfl.federation.errors import BackendError
from llm_qfl.federation.types import Array
from llm_qfl.quantum.circuits import ModelCircuit
from llm_qfl.quantum.exact.engine import ExactEngine


class Backend(Protocol):
    """Expectation values of a circuit's observables, and their gradients.

    Attributes:
        name: as in `quantum.backend`.
    """

    name: str

    def expectations(self, x: Array, weights: Array) -> Array:
        """(N, K) for rows (N, D) at weights (P,)."""

    def jacobian(self, x: Array, weights: Array) -> tuple[Array, Array]:
        """(N, K) and d/d weights (N, K, P)."""

    def pull_back(self, x: Array, weights: Array, cotangent: Callable[[Array], Array]) -> tuple[Array, Array]:
        """(N, K), and the cotangent (N, K) of these values pulled back to the weights (P,), summed over rows."""

    def gradient_sweeps(self, rows: int) -> int:
        """Sweeps over these rows, forward and adjoint, that a simulator does in one `pull_back`; 0 for a device."""


_AMPLITUDES_APART = 2**13
"""Rows times amplitudes from which a second forward sweep costs less than a bra for each output."""


class ExactBackend:
    """The batched exact simulator; nothing is sampled, no noise."""

    name = "exact"

    def __init__(self, circuit: ModelCircuit, precision: str) -> None:
        self._outputs, self._amplitudes = len(circuit.observables), 2**circuit.circuit.num_qubits
        self._engine = ExactEngine(
            circuit.circuit,
            list(circuit.observables),
            input_parameters=circuit.input_parameters,
            weight_parameters=circuit.weight_parameters,
            dtype=precision,
        )

    def expectations(self, x: Array, weights: Array) -> Array:
        """See Backend."""
        return self._engine.expectations(x, weights)

    def jacobian(self, x: Array, weights: Array) -> tuple[Array, Array]:
        """See Backend."""
        values, gradient, _ = self._engine.jacobian(x, weights)
        if gradient is None:
            raise BackendError("the exact engine gave no weight gradient although it was asked for one")
        return values, gradient

    def pull_back(self, x: Array, weights: Array, cotangent: Callable[[Array], Array]) -> tuple[Array, Array]:
        """See Backend.

        A Jacobian takes a bra for each output and gives the values on the way; a product takes one bra in all, but
        must be told the cotangent, so the values need a sweep of their own. Up to two outputs, and for a handful of
        rows, the first is cheaper.
        """
        if self._apart(len(x)):
            values = self.expectations(x, weights)
            return values, self._engine.vjp(x, weights, cotangent(values))[1]
        values, gradient = self.jacobian(x, weights)
        return values, cotangent(values).reshape(-1) @ gradient.reshape(-1, gradient.shape[2])

    def gradient_sweeps(self, rows: int) -> int:
        """See Backend."""
        return 3 if self._apart(rows) else 2

    def _apart(self, rows: int) -> bool:
        return self._outputs > 2 and rows * self._amplitudes >= _AMPLITUDES_APART


def make_backend(name: str, circuit: ModelCircuit, *, precision: str) -> Backend:
    """The backend of this name.

    Args:
        name: as in `quantum.backend`.
        circuit: with its observables.
        precision: `float64` or `float32`, of the exact engine.

    Raises:
        BackendError: no such backend.
        CircuitError: it cannot run the circuit (too many qubits for memory, say).
    """
    if name != "exact":
        raise BackendError(f"quantum.backend: expected exact, got {name!r}; set quantum.backend to exact")
    return ExactBackend(circuit, precision)
