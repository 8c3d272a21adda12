"""Where circuits run: one protocol, one factory.

`exact` | `aer` | `aer-<fake device>` | `ibm:<device>` | `ibm:least-busy` | `ibm-local:<fake device>`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llm_qfl.federation.backend_names import backend_problem, fake_device
from llm_qfl.federation.config import QuantumConfig
from llm_qfl.federation.errors import BackendError
from llm_qfl.federation.types import Array
from llm_qfl.quantum.circuits import ModelCircuit
from llm_qfl.quantum.exact.engine import ExactEngine
from llm_qfl.quantum.scope import Meter, Place, Scope


class Backend(Protocol):
    """Expectation values of a circuit's observables, and their gradients by the best rule that it allows.

    Attributes:
        name: as in `quantum.backend`.
        meter: what its calls cost in this scope: shots, jobs, QPU and queue seconds.
    """

    name: str
    meter: Meter

    def at(self, scope: Scope) -> Backend:
        """The same for another scope, its meter at zero."""

    def expectations(self, x: Array, weights: Array) -> Array:
        """(N, K) for rows (N, D) at weights (P,)."""

    def jacobian(self, x: Array, weights: Array) -> tuple[Array, Array]:
        """(N, K) and d/d weights (N, K, P)."""

    def pull_back(self, x: Array, weights: Array, cotangent: Callable[[Array], Array]) -> tuple[Array, Array]:
        """(N, K), and the cotangent (N, K) of these values pulled back to the weights (P,), summed over rows."""

    def gradient_sweeps(self, rows: int) -> int:
        """What a simulator really does for each of these rows in one `pull_back`.

        Sweeps, forward and adjoint, of the exact engine; circuits of the shift rule.
        """

    def close(self) -> None:
        """The task is done: what is open at a service is closed, so that it costs nothing more."""


_AMPLITUDES_APART = 2**13
"""Rows times amplitudes from which a second forward sweep costs less than a bra for each output."""


class ExactBackend:
    """The batched exact simulator; nothing is sampled, no noise."""

    name = "exact"

    def __init__(self, circuit: ModelCircuit, precision: str) -> None:
        self.meter = Meter()
        self._outputs, self._amplitudes = len(circuit.observables), 2**circuit.circuit.num_qubits
        self._engine = ExactEngine(
            circuit.circuit,
            list(circuit.observables),
            input_parameters=circuit.input_parameters,
            weight_parameters=circuit.weight_parameters,
            dtype=precision,
        )

    def at(self, scope: Scope) -> ExactBackend:
        """See Backend. Exact numbers are the same in every scope and cost no shots."""
        return self

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

    def close(self) -> None:
        """See Backend. Nothing is open."""

    def _apart(self, rows: int) -> bool:
        return self._outputs > 2 and rows * self._amplitudes >= _AMPLITUDES_APART


def make_backend(config: QuantumConfig, circuit: ModelCircuit, place: Place | None = None) -> Backend:
    """The configured backend. What it needs is loaded here and not before; nothing is spent yet.

    Args:
        config: its name and options.
        circuit: with its observables.
        place: what the node gives: its folder and limits; None keeps files in the user's cache.

    Raises:
        BackendError: no such backend or device, or its packages are not installed.
        CircuitError: it cannot run the circuit (too many qubits for memory, a gate without a shift rule).
    """
    if problem := backend_problem(config.backend):
        raise BackendError(f"quantum.backend: {problem}")
    if config.backend == "exact":
        return ExactBackend(circuit, config.precision)
    from llm_qfl.quantum.sampled.angles import AngleCircuit
    from llm_qfl.quantum.sampled.shift import PointRunner, ShiftBackend

    angles, place = AngleCircuit(circuit), place or Place.default()
    runner: PointRunner
    if config.backend.startswith("ibm"):
        from llm_qfl.quantum.sampled.ibm import IbmPointRunner

        runner = IbmPointRunner(config, angles, circuit, place)
    else:
        from llm_qfl.quantum.sampled.aer import AerRunner

        runner = AerRunner(
            config.backend,
            angles,
            circuit.observables,
            digest=circuit.digest(),
            device=fake_device(config.backend),
            mitigation=config.mitigation,
            folder=place.folder / "transpiled",
        )
    return ShiftBackend(runner, angles, Scope(shots=config.shots))
