"""`ExactEstimatorQNN`: expectation values as a network; see `qnn.py` for what is and is not drop-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.primitives import BaseEstimatorV2
from qiskit.quantum_info import SparsePauliOp
from qiskit.quantum_info.operators.base_operator import BaseOperator
from qiskit.transpiler.passmanager import BasePassManager
from qiskit_machine_learning.gradients import BaseEstimatorGradient
from qiskit_machine_learning.neural_networks import EstimatorQNN

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact.engine import ExactEngine
from llm_qfl.quantum.exact.engine_cache import engine_settings
from llm_qfl.quantum.exact.estimator import ExactEstimator, paulis_of
from llm_qfl.quantum.exact.measurement import without_measurements
from llm_qfl.quantum.exact.network import check_shots, points, refuse, wanted

FLOAT = NDArray[np.float64]

ORIGINAL_PRECISION = 0.015625
"""`EstimatorQNN`'s default, which its default estimator ignores."""

_INSTEAD = "use EstimatorQNN(estimator=ExactEstimator(), ...)"


class ExactEstimatorQNN(EstimatorQNN):  # type: ignore[misc]  # qiskit-machine-learning carries no types here
    """`EstimatorQNN` on the exact engine: expectation values of observables, any circuit of unitary gates.

    Args:
        circuit: the circuit; final measurements are left out.
        estimator: refused, the engine is the estimator.
        observables: one or several; default: Z on every qubit.
        input_params: parameters that the inputs go to.
        weight_params: parameters that the weights go to.
        gradient: refused, the engine differentiates.
        input_gradients: should `backward` differentiate by the inputs too?
        default_precision: as in the original without effect on values; only its default and 0 are accepted.
        pass_manager: refused, a transpiled circuit has the same values.
        shots: shots for each group of qubit-wise commuting Paulis of an observable; `None`: exact values.
        seed: of the shots; the network draws from one stream over all calls.
        dtype: `float64` or `float32`, what the engine computes in.
        memory_budget: bytes that the engine may use; `None`: its default.

    Raises:
        CircuitError: an argument is refused, or the circuit cannot be simulated exactly.
        ValueError: the parameters named are not those of the circuit.
    """

    def __init__(  # noqa: PLR0913 - the original's arguments, all by keyword
        self,
        *,
        circuit: QuantumCircuit,
        estimator: BaseEstimatorV2 | None = None,
        observables: Sequence[BaseOperator] | BaseOperator | None = None,
        input_params: Sequence[Parameter] | None = None,
        weight_params: Sequence[Parameter] | None = None,
        gradient: BaseEstimatorGradient | None = None,
        input_gradients: bool = False,
        default_precision: float = ORIGINAL_PRECISION,
        pass_manager: BasePassManager | None = None,
        shots: int | None = None,
        seed: np.random.Generator | int | None = None,
        dtype: str = "float64",
        memory_budget: int | None = None,
    ) -> None:
        name = type(self).__name__
        refuse(
            name,
            _INSTEAD,
            estimator=estimator,
            gradient=gradient,
            pass_manager=pass_manager,
        )
        check_shots(name, shots)
        if default_precision not in (0, ORIGINAL_PRECISION):
            raise CircuitError(
                f"{name}: argument 'default_precision' ({default_precision}) would have no effect, values are exact: "
                "leave it out; for the noise of a device say shots=ceil(1 / precision ** 2)"
            )
        self._shots, self._settings = shots, engine_settings(dtype, memory_budget)
        self._engine: ExactEngine | None = None
        precision = 0.0 if shots is None else float(shots) ** -0.5
        own = ExactEstimator(
            default_precision=precision,
            seed=np.random.default_rng(seed),
            sampled=True,
            dtype=dtype,
            memory_budget=memory_budget,
        )
        super().__init__(
            circuit=circuit,
            estimator=own,
            observables=observables,
            input_params=input_params,
            weight_params=weight_params,
            input_gradients=input_gradients,
            default_precision=default_precision if shots is None else precision,
        )
        self._circuit: QuantumCircuit = without_measurements(self._circuit)
        self._operators: list[SparsePauliOp] = paulis_of(self._observables)
        if shots is None:
            self._exact()

    @property
    def estimator(self) -> ExactEstimator:
        """The estimator behind the parameter-shift gradients of a network with shots."""
        return self._estimator

    @estimator.setter
    def estimator(self, estimator: ExactEstimator) -> None:
        if "_estimator" in self.__dict__:
            refuse(type(self).__name__, _INSTEAD, estimator=estimator)
        self._estimator = estimator

    @property
    def gradient(self) -> BaseEstimatorGradient:
        """The parameter-shift gradient that a network with shots uses."""
        return self._gradient

    @gradient.setter
    def gradient(self, gradient: BaseEstimatorGradient) -> None:
        if "_gradient" in self.__dict__:
            refuse(type(self).__name__, _INSTEAD, gradient=gradient)
        self._gradient = gradient

    @property
    def shots(self) -> int | None:
        """Shots per measured group, `None` for exact values."""
        return self._shots

    def __getstate__(self) -> dict[str, Any]:
        """Without the engine, which is compiled again where it is needed."""
        return self.__dict__ | {"_engine": None}

    def _exact(self) -> ExactEngine:
        if self._engine is None:
            parameters = list(self._circuit.parameters)
            self._engine = ExactEngine(
                self._circuit,
                self._operators,
                input_parameters=parameters[: self.num_inputs],
                weight_parameters=parameters[self.num_inputs :],
                **self._settings,
            )
        return self._engine

    def _forward(self, input_data: FLOAT | None, weights: FLOAT | None) -> FLOAT:
        rows, vector = points(self, input_data, weights)
        if self._shots is not None:
            return np.asarray(super()._forward(input_data, weights))
        return self._exact().expectations(rows, vector)

    def _backward(self, input_data: FLOAT | None, weights: FLOAT | None) -> tuple[FLOAT | None, FLOAT | None]:
        rows, vector = points(self, input_data, weights)
        if self._shots is not None:
            by_inputs, by_weights = super()._backward(input_data, weights)
            return by_inputs, by_weights
        weights_too, inputs_too = wanted(self)
        if not weights_too and not inputs_too:
            return None, None
        _, by_weights, by_inputs = self._exact().jacobian(
            rows, vector, weight_gradient=weights_too, input_gradient=inputs_too
        )
        return by_inputs, by_weights
