"""A circuit of plain angles: every parameter expression becomes one angle of its own.

Then a batch at any weights, and every shifted point of a gradient, is a row of one array: one circuit, transpiled
once, one PUB. Expressions (`w * x + b`) and their derivatives are evaluated outside the circuit.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from qiskit.circuit import Parameter, ParameterExpression, QuantumCircuit

from llm_qfl.federation.errors import CircuitError
from llm_qfl.federation.types import Array
from llm_qfl.quantum.circuits import ModelCircuit
from llm_qfl.quantum.exact.expressions import ExpressionTable, Polynomial

TWO_TERM = frozenset({"rx", "ry", "rz", "p", "u1", "rxx", "ryy", "rzz", "rzx"})
"""Gates with two eigenvalues that differ by one: dE/da = (E(a + pi/2) - E(a - pi/2)) / 2 (Schuld et al. 2019)."""


class AngleCircuit:
    """A ModelCircuit with one free angle for each parameter expression.

    Args:
        model: circuit, inputs and weights.

    Attributes:
        circuit: over `angles`, without measurements.
        angles: A parameters, in the order of the columns of `values`.
        trained: columns of the G angles that depend on weights.

    Raises:
        CircuitError: a gate that depends on weights and has no two-term shift rule.
    """

    def __init__(self, model: ModelCircuit) -> None:
        self._num_weights = len(model.weight_parameters)
        self._table = ExpressionTable(model.input_parameters, model.weight_parameters)
        self._polynomials: list[Polynomial] = []
        self._weights = set(model.weight_parameters)
        trained: list[int] = []
        self.circuit: QuantumCircuit = QuantumCircuit(model.circuit.num_qubits, name=model.name)
        for step in model.circuit.data:
            operation, params = step.operation, []
            for value in operation.params:
                if not isinstance(value, ParameterExpression) or not value.parameters:
                    params.append(value)
                    continue
                if self._weights & set(value.parameters):
                    _check_rule(operation.name)
                    trained.append(len(self._polynomials))
                params.append(_angle(len(self._polynomials)))
                self._polynomials.append(self._table.read(value))
            if params:
                operation = operation.to_mutable()
                operation.params = params
            self.circuit.append(operation, [model.circuit.find_bit(bit).index for bit in step.qubits])
        self.angles = tuple(_angle(i, self.circuit) for i in range(len(self._polynomials)))
        self.trained = np.array(trained, np.intp)

    def values(self, x: Array, weights: Array) -> Array:
        """Angles (N, A) of rows (N, D) at weights (P,)."""
        terms = self._terms(x, weights)
        out = np.zeros((len(x), len(self._polynomials)))
        for column, polynomial in enumerate(self._polynomials):
            for (i, j), coefficient in polynomial.items():
                out[:, column] += coefficient * terms[:, i] * terms[:, j]
        return out

    def pull_back(self, by_angle: Array, x: Array, weights: Array) -> Array:
        """Chain rule: derivatives of K outputs by the trained angles (N, K, G) -> by the weights (N, K, P)."""
        out = np.zeros((*by_angle.shape[:2], self._num_weights))
        terms, functions = self._terms(x, weights), self._function_slopes(x, weights)
        for number, column in enumerate(self.trained):
            by_weight: dict[int, Array] = defaultdict(lambda: np.zeros(len(x)))
            for (i, j), coefficient in self._polynomials[column].items():
                for term, other in ((i, j), (j, i)):
                    if 1 <= term <= self._num_weights:
                        by_weight[term - 1] += coefficient * terms[:, other]
                    for weight, slope in functions.get(term, {}).items():
                        by_weight[weight] += coefficient * terms[:, other] * slope
            for weight, slope in by_weight.items():
                out[:, :, weight] += by_angle[:, :, number] * slope[:, None]
        return out

    def _terms(self, x: Array, weights: Array) -> Array:
        """(N, 1 + P + D + F): what the polynomials are over."""
        rows = len(x)
        functions = [np.broadcast_to(f.value(x, weights), rows) for f in self._table.functions]
        shared = np.broadcast_to(np.concatenate([[1.0], weights]), (rows, 1 + len(weights)))
        return np.concatenate([shared, x, *(column[:, None] for column in functions)], axis=1)

    def _function_slopes(self, x: Array, weights: Array) -> dict[int, dict[int, Array]]:
        """Term -> weight -> derivative (N,), for the terms that are functions of weights."""
        first = 1 + self._num_weights + self._table.num_inputs
        found: dict[int, dict[int, Array]] = {}
        for number, function in enumerate(self._table.functions):
            slopes = zip(function.arguments, function.derivatives(x, weights), strict=True)
            by_weight = {at: np.broadcast_to(slope, len(x)) for (is_input, at), slope in slopes if not is_input}
            if by_weight:
                found[first + number] = by_weight
        return found


def _angle(number: int, circuit: QuantumCircuit | None = None) -> Parameter:
    """The angle of this number; the circuit's own object where it has one. Sorted by name is sorted by number."""
    name = f"angle{number:06d}"
    return Parameter(name) if circuit is None else circuit.get_parameter(name)


def _check_rule(gate: str) -> None:
    if gate not in TWO_TERM:
        raise CircuitError(
            f"gate {gate!r} depends on a weight and has no two-term shift rule; expected one of {sorted(TWO_TERM)}: "
            "decompose it, or run on the backend exact"
        )
