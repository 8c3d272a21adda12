"""`ExactSamplerQNN`: probabilities as a network; see `qnn.py` for what is and is not drop-in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.primitives import BaseSamplerV2
from qiskit.transpiler.passmanager import BasePassManager
from qiskit_machine_learning.gradients import BaseSamplerGradient
from qiskit_machine_learning.neural_networks import SamplerQNN

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact.engine import ExactEngine
from llm_qfl.quantum.exact.engine_cache import engine_settings, rows_at_once
from llm_qfl.quantum.exact.measurement import measured_keys, network_readout, remeasured, without_measurements
from llm_qfl.quantum.exact.network import check_shots, points, refuse, wanted
from llm_qfl.quantum.exact.sampler import ExactSampler
from llm_qfl.quantum.exact.sampling import sample_counts

if TYPE_CHECKING:
    from sparse import SparseArray

FLOAT = NDArray[np.float64]
INDEX = NDArray[np.int64]

_MANY_OUTPUTS = 32
"""Above it, values come from all probabilities at once rather than output by output."""

_INSTEAD = "use SamplerQNN(sampler=ExactSampler(), ...)"


class ExactSamplerQNN(SamplerQNN):  # type: ignore[misc]  # qiskit-machine-learning carries no types here
    """`SamplerQNN` on the exact engine: probabilities of (interpreted) bit strings, any circuit of unitary gates.

    Args:
        circuit: the circuit; without classical bits, all qubits are measured.
        sampler: refused, the engine is the sampler.
        input_params: parameters that the inputs go to.
        weight_params: parameters that the weights go to.
        sparse: should results be `sparse.COO` arrays?
        interpret: output index, or tuple of indices, of each measured integer; default: the integer itself.
        output_shape: shape of an output; needed with `interpret`.
        gradient: refused, the engine differentiates.
        input_gradients: should `backward` differentiate by the inputs too?
        pass_manager: refused, a transpiled circuit has the same values.
        shots: shots per sample; `None`: exact probabilities.
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
        sampler: BaseSamplerV2 | None = None,
        input_params: Sequence[Parameter] | None = None,
        weight_params: Sequence[Parameter] | None = None,
        sparse: bool = False,
        interpret: Callable[[int], int | tuple[int, ...]] | None = None,
        output_shape: int | tuple[int, ...] | None = None,
        gradient: BaseSamplerGradient | None = None,
        input_gradients: bool = False,
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
            sampler=sampler,
            gradient=gradient,
            pass_manager=pass_manager,
        )
        check_shots(name, shots)
        self._shots, self._settings = shots, engine_settings(dtype, memory_budget)
        self._rng = np.random.default_rng(seed)
        self._engine: ExactEngine | None = None
        self._distribution: ExactEngine | None = None
        self._classes: INDEX | None = None
        own = ExactSampler(default_shots=shots or 1024, seed=self._rng, dtype=dtype, memory_budget=memory_budget)
        super().__init__(
            circuit=circuit,
            sampler=own,
            input_params=input_params,
            weight_params=weight_params,
            sparse=sparse,
            interpret=interpret,
            output_shape=output_shape,
            input_gradients=input_gradients,
        )
        key_qubits = network_readout(circuit)
        self._keys = measured_keys(key_qubits, circuit.num_qubits)
        self._bare = without_measurements(self._circuit)
        self._circuit: QuantumCircuit = remeasured(self._bare, key_qubits)
        self._all_probabilities()  # a circuit that cannot be simulated is refused now; `interpret` may still be set

    @property
    def sampler(self) -> ExactSampler:
        """The sampler behind the parameter-shift gradients of a network with shots."""
        return self._sampler

    @sampler.setter
    def sampler(self, sampler: ExactSampler) -> None:
        if "_sampler" in self.__dict__:
            refuse(type(self).__name__, _INSTEAD, sampler=sampler)
        self._sampler = sampler

    @property
    def gradient(self) -> BaseSamplerGradient:
        """The parameter-shift gradient that a network with shots uses."""
        return self._gradient

    @gradient.setter
    def gradient(self, gradient: BaseSamplerGradient) -> None:
        if "_gradient" in self.__dict__:
            refuse(type(self).__name__, _INSTEAD, gradient=gradient)
        self._gradient = gradient

    @property
    def shots(self) -> int | None:
        """Shots per sample, `None` for exact probabilities."""
        return self._shots

    def set_interpret(
        self,
        interpret: Callable[[int], int | tuple[int, ...]] | None = None,
        output_shape: int | tuple[int, ...] | None = None,
    ) -> None:
        """Change the interpretation; see the constructor."""
        super().set_interpret(interpret, output_shape)
        self._engine, self._classes = None, None

    def __getstate__(self) -> dict[str, Any]:
        """Without the engine, which is compiled again where it is needed."""
        return self.__dict__ | {"_engine": None, "_distribution": None}

    def _compiled(self, classes: INDEX | None = None, num_outputs: int | None = None) -> ExactEngine:
        parameters = list(self._circuit.parameters)
        return ExactEngine(
            self._bare,
            input_parameters=parameters[: self.num_inputs],
            weight_parameters=parameters[self.num_inputs :],
            classes=classes,
            num_outputs=num_outputs,
            **self._settings,
        )

    def _exact(self) -> ExactEngine:
        """The engine whose outputs are the network's, and one that gathers bit strings without an output."""
        if self._engine is None:
            self._engine = self._compiled(self._class_table(), self._num_outputs + 1)
        return self._engine

    def _all_probabilities(self) -> ExactEngine:
        if self._distribution is None:
            self._distribution = self._compiled()
        return self._distribution

    def _class_table(self) -> INDEX:
        if self._classes is None:
            self._classes = class_table(self._keys, self._interpret, self._output_shape, 2**self.num_virtual_qubits)
        return self._classes

    def _values(self, rows: FLOAT, vector: FLOAT) -> FLOAT:
        """Probability of every output and of the rest, shape `(N, outputs + 1)`."""
        if self._num_outputs <= _MANY_OUTPUTS:
            return self._exact().expectations(rows, vector)
        engine = self._all_probabilities()
        step = rows_at_once(self._bare.num_qubits, self._settings["memory_budget"])
        values = np.zeros((len(rows), self._num_outputs + 1))
        for start in range(0, len(rows), step):
            exact = engine.probabilities(rows[start : start + step], vector)
            np.add.at(values[start : start + step].T, self._class_table(), exact.T)
        return values

    @property
    def _num_outputs(self) -> int:
        return math.prod(self._output_shape)

    def _shaped(self, values: FLOAT | None) -> FLOAT | SparseArray | None:
        """Outputs `(N, outputs + 1, ...)` in the network's shape, the gathered rest dropped."""
        if values is None:
            return None
        values = values[:, : self._num_outputs].reshape(len(values), *self._output_shape, *values.shape[2:])
        if not self._sparse:
            return np.ascontiguousarray(values)
        from sparse import COO

        return COO.from_numpy(values)

    def _forward(self, input_data: FLOAT | None, weights: FLOAT | None) -> FLOAT | SparseArray:
        rows, vector = points(self, input_data, weights)
        values = self._values(rows, vector)
        if self._shots is not None:
            values = sample_counts(values, self._shots, self._rng) / self._shots
        return self._shaped(values)

    def _backward(
        self, input_data: FLOAT | None, weights: FLOAT | None
    ) -> tuple[FLOAT | SparseArray | None, FLOAT | SparseArray | None]:
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
        return self._shaped(by_inputs), self._shaped(by_weights)


def class_table(
    keys: INDEX,
    interpret: Callable[[int], int | tuple[int, ...]],
    output_shape: tuple[int, ...],
    num_keys: int,
) -> INDEX:
    """Flat output index of every basis state.

    Args:
        keys: the integer measured in each basis state.
        interpret: the network's interpretation of such an integer.
        output_shape: shape that its indices go into.
        num_keys: integers from here on are no key; the originals drop them.

    Returns:
        Shape `(2**n,)`; `prod(output_shape)` for a state that has no output.

    Raises:
        CircuitError: `interpret` gives an index outside `output_shape`.
    """
    rest = math.prod(output_shape)
    known = {int(key): _flat_index(int(key), interpret, output_shape) for key in np.unique(keys) if key < num_keys}
    return np.array([known.get(int(key), rest) for key in keys], dtype=np.int64)


def _flat_index(key: int, interpret: Callable[[int], int | tuple[int, ...]], shape: tuple[int, ...]) -> int:
    found = interpret(key)
    index = tuple(found) if isinstance(found, Iterable) else (found,)
    whole = all(isinstance(i, Integral) for i in index)
    if not whole or len(index) != len(shape) or any(not -n <= i < n for i, n in zip(index, shape, strict=True)):
        raise CircuitError(
            f"interpret({key}) gives {found!r}, which is no index into output_shape {shape}: "
            "return one integer per dimension, or change output_shape"
        )
    return int(np.ravel_multi_index(tuple(i % n for i, n in zip(index, shape, strict=True)), shape))
