"""Where circuits run: one protocol. Today `exact`; devices join behind the same calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llm_qfl.federation.errors import BackendError
from llm_qfl.federation.types import Array
from llm_qfl.quantum.circuits import ModelCircuit
from llm_qfl.quantum.exact.engine import ExactEngine


class Backend(Protocol):
    """Expectation values of a circuit's observables, and their gradients."""

    name: str

    def expectations(self, x: Array, weights: Array) -> Array:
        """(N, K) for rows (N, D) at weights (P,)."""

    def jacobian(self, x: Array, weights: Array) -> tuple[Array, Array]:
        """(N, K) and d/d weights (N, K, P)."""

    def pull_back(self, x: Array, weights: Array, cotangent: Callable[[Array], Array]) -> tuple[Array, Array]:
        """(N, K), and the cotangent (N, K) of these values pulled back to the weights (P,), summed over rows."""


class ExactBackend:
    """The batched exact simulator; nothing is sampled, no noise."""

    name = "exact"

    def __init__(self, circuit: ModelCircuit, precision: str) -> None:
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
        """See Backend. One sweep with a bra for each observable: the values need no sweep of their own."""
        values, gradient = self.jacobian(x, weights)
        back = cotangent(values)
        return values, back.reshape(-1) @ gradient.reshape(-1, gradient.shape[2])


def make_backend(name: str, circuit: ModelCircuit, precision: str) -> Backend:
    """The backend of this name.

    Raises:
        BackendError: no such backend.
        CircuitError: it cannot run the circuit (too many qubits for memory, say).
    """
    if name != "exact":
        raise BackendError(f"quantum.backend: expected exact, got {name!r}")
    return ExactBackend(circuit, precision)
