"""Angles as polynomials: what a gate's parameter expression becomes before any number is known.

The kernels know one vector of *values* per sample: `[1, weights, shared functions, inputs, per-sample functions]`.
An angle is a polynomial of degree two at most in that vector, which covers `w * x + b` and the ZZ feature map's
`(pi - x_i) * (pi - x_j)`. Any other expression (`sin(x)`, `x ** 3`) becomes a *function*: an entry of the vector of
its own, computed beside its derivatives for the whole batch through SymPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, ParameterExpression

from llm_qfl.federation.errors import CircuitError

Monomial = tuple[int, int]
"""Indices of the two factors, the smaller first; index 0 is the constant 1."""

Polynomial = dict[Monomial, float]

ONE = 0
FLOAT = NDArray[np.float64]
_PROBE = np.random.default_rng(1).uniform(0.3, 0.9, 4096)
_AGREE = 1e-12


def scaled(polynomial: Polynomial, factor: float) -> Polynomial:
    """The polynomial times a number."""
    return {monomial: coefficient * factor for monomial, coefficient in polynomial.items()}


@dataclass(frozen=True)
class Function:
    """An expression that is no polynomial of degree two.

    Args:
        expression: the expression itself.
        parameters: its parameters, in the order of `arguments`.
        arguments: their symbols as (is_input, position).
    """

    expression: ParameterExpression
    parameters: tuple[Parameter, ...]
    arguments: tuple[tuple[bool, int], ...]

    @property
    def per_sample(self) -> bool:
        """Does it depend on an input?"""
        return any(is_input for is_input, _ in self.arguments)

    @property
    def of_weights(self) -> bool:
        """Does it depend on a weight?"""
        return any(not is_input for is_input, _ in self.arguments)

    @cached_property
    def _compiled(self) -> tuple[Callable[..., FLOAT], list[Callable[..., FLOAT]]]:
        value = _lambdified(self.expression, self.parameters)
        return value, [_lambdified(self.expression.gradient(p), self.parameters) for p in self.parameters]

    def value(self, inputs: FLOAT, weights: FLOAT) -> FLOAT:
        """Values, shape `(N,)` (or a scalar array where no input occurs)."""
        return self._compiled[0](*self._columns(inputs, weights))

    def derivatives(self, inputs: FLOAT, weights: FLOAT) -> list[FLOAT]:
        """Derivatives by each of `arguments`, each of the shape of `value`."""
        columns = self._columns(inputs, weights)
        return [derivative(*columns) for derivative in self._compiled[1]]

    def _columns(self, inputs: FLOAT, weights: FLOAT) -> list[FLOAT]:
        return [inputs[:, at] if is_input else weights[at] for is_input, at in self.arguments]


def _lambdified(expression: ParameterExpression | float, parameters: Sequence[Parameter]) -> Callable[..., FLOAT]:
    if not isinstance(expression, ParameterExpression) or not expression.parameters:
        number = _real(expression)
        return lambda *_: np.asarray(number)
    import sympy  # a second of import that polynomial circuits need not pay

    symbols = [sympy.Symbol(p.name) for p in parameters]
    function = sympy.lambdify(symbols, expression.sympify(), modules="numpy", cse=True)
    return lambda *columns: np.asarray(function(*columns), dtype=np.float64)


def _real(number: ParameterExpression | complex | float) -> float:
    value = complex(number)
    if value.imag != 0.0 or not np.isfinite(value.real):
        raise CircuitError(f"a gate's angle must be a finite real number, got {value}")
    return value.real


class ExpressionTable:
    """Reads parameter expressions into polynomials and collects the functions.

    Args:
        input_parameters: parameters that differ from sample to sample, in the order of the input columns.
        weight_parameters: parameters that all samples share, in the order of the weight vector.
    """

    def __init__(self, input_parameters: Sequence[Parameter], weight_parameters: Sequence[Parameter]) -> None:
        self._where: dict[Parameter, tuple[bool, int]] = {p: (False, i) for i, p in enumerate(weight_parameters)}
        for i, parameter in enumerate(input_parameters):
            if self._where.get(parameter, (True, 0))[0] is False:
                raise CircuitError(f"parameter {parameter.name!r} is both an input and a weight: give it one role")
            self._where[parameter] = (True, i)
        if len(self._where) != len(input_parameters) + len(weight_parameters):
            raise CircuitError("a parameter is named twice among the inputs or among the weights")
        self.num_inputs, self.num_weights = len(input_parameters), len(weight_parameters)
        self.functions: list[Function] = []
        self._seen: dict[str, list[tuple[ParameterExpression, Polynomial]]] = {}

    def read(self, expression: ParameterExpression | float) -> Polynomial:
        """The polynomial of an angle. Inputs and functions carry provisional indices, see `index`.

        Raises:
            CircuitError: a parameter is neither an input nor a weight, or the angle is not a finite real number.
        """
        if not isinstance(expression, ParameterExpression) or not expression.parameters:
            return {(ONE, ONE): _real(expression)}
        if isinstance(expression, Parameter):
            return {(ONE, self._index(expression)): 1.0}
        known = self._seen.setdefault(str(expression), [])
        for other, polynomial in known:
            if other.parameters == expression.parameters and other == expression:
                return polynomial
        polynomial = self._polynomial(expression) or {(ONE, self._function(expression)): 1.0}
        known.append((expression, polynomial))
        return polynomial

    def _index(self, parameter: Parameter) -> int:
        """Index into `[1, weights, inputs, functions]`; `place` gives the final one."""
        if parameter not in self._where:
            raise CircuitError(
                f"parameter {parameter.name!r} of the circuit is neither an input nor a weight parameter: "
                "name it in input_params or weight_params, or bind it"
            )
        is_input, position = self._where[parameter]
        return 1 + position + (self.num_weights if is_input else 0)

    def _function(self, expression: ParameterExpression) -> int:
        parameters = tuple(sorted(expression.parameters, key=lambda p: p.name))
        for parameter in parameters:
            self._index(parameter)
        self.functions.append(Function(expression, parameters, tuple(self._where[p] for p in parameters)))
        return 1 + self.num_weights + self.num_inputs + len(self.functions) - 1

    def _polynomial(self, expression: ParameterExpression) -> Polynomial | None:
        """Degree <= 2 through constant second derivatives, checked at a point; else None."""
        parameters = sorted(expression.parameters, key=lambda p: p.name)
        at = {p: self._index(p) for p in parameters}
        try:
            zero = dict.fromkeys(parameters, 0.0)
            result: Polynomial = {(ONE, ONE): _bound(expression, zero)}
            for i, p in enumerate(parameters):
                slope = expression.gradient(p)
                result[ONE, at[p]] = _bound(slope, zero)
                for q in parameters[i:]:
                    curve = slope.gradient(q) if isinstance(slope, ParameterExpression) else 0.0
                    if isinstance(curve, ParameterExpression) and curve.parameters:
                        return None
                    monomial = (min(at[p], at[q]), max(at[p], at[q]))
                    result[monomial] = _real(curve) * (0.5 if p == q else 1.0)
        except (ZeroDivisionError, CircuitError):  # no value at zero, such as 1/x: no polynomial
            return None
        except Exception as error:
            raise CircuitError(f"cannot differentiate the angle {expression}: {error}") from error
        return result if self._agrees(expression, result, at) else None

    @staticmethod
    def _agrees(expression: ParameterExpression, polynomial: Polynomial, at: dict[Parameter, int]) -> bool:
        point = {p: float(_PROBE[index % len(_PROBE)]) for p, index in at.items()}
        values = {ONE: 1.0} | {index: point[p] for p, index in at.items()}
        got = sum(c * values[i] * values[j] for (i, j), c in polynomial.items())
        expected = _bound(expression, point)
        return abs(got - expected) <= _AGREE * (1.0 + abs(expected))


def _bound(expression: ParameterExpression | float, values: dict[Parameter, float]) -> float:
    if not isinstance(expression, ParameterExpression):
        return _real(expression)
    return _real(expression.bind({p: v for p, v in values.items() if p in expression.parameters}))
