"""Engines by what a circuit *is*, so that a primitive compiles a circuit once however often it is sent.

The key is the circuit's structure, read anew at each run: circuits can be changed in place, and callers (Qiskit's
gradients among them) build equal circuits again and again, so the object's identity would be both unsafe and useless.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from qiskit.circuit import Operation, ParameterExpression, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.quantum.exact.engine import DEFAULT_MEMORY_BUDGET, ExactEngine
from llm_qfl.quantum.exact.lanes import LANES

_DEFINED_BY_PARAMETERS = ("unitary", "diagonal", "initialize")
"""Instructions whose definition is synthesised from their parameters: slow to make, and nothing new in it."""


def circuit_key(circuit: QuantumCircuit) -> Hashable:
    """What two circuits share if they give the same state at the same parameter values, by position.

    Classical registers count too: they say where measured bits go.
    """
    qubit = {bit: i for i, bit in enumerate(circuit.qubits)}
    clbit = {bit: i for i, bit in enumerate(circuit.clbits)}
    return (
        circuit.num_qubits,
        tuple((register.name, tuple(clbit[bit] for bit in register)) for register in circuit.cregs),
        tuple(parameter.name for parameter in circuit.parameters),
        _frozen(circuit.global_phase),
        tuple(
            (_operation_key(item.operation), tuple(qubit[q] for q in item.qubits), tuple(clbit[c] for c in item.clbits))
            for item in circuit.data
        ),
    )


def _operation_key(operation: Operation) -> Hashable:
    name, parameters = operation.name, tuple(_frozen(p) for p in getattr(operation, "params", ()))
    if getattr(operation, "_standard_gate", None) is not None or name in _DEFINED_BY_PARAMETERS:
        return type(operation).__name__, name, parameters
    definition = getattr(operation, "definition", None)
    if definition is not None:
        return type(operation).__name__, name, parameters, circuit_key(definition)
    if name in ("measure", "barrier", "delay", "reset"):
        return name, parameters
    return name, object()  # nothing to compare by: a key that no other circuit has


def _frozen(value: object) -> Hashable:
    if isinstance(value, ParameterExpression):
        return str(value)  # names are unique within a circuit and numbers are printed in full
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return value if isinstance(value, Hashable) else object()


def engine_settings(dtype: str, memory_budget: int | None) -> dict[str, Any]:
    """Keyword arguments of an engine; `None`: its default budget."""
    return {"dtype": dtype, "memory_budget": DEFAULT_MEMORY_BUDGET if memory_budget is None else memory_budget}


def rows_at_once(num_qubits: int, memory_budget: int) -> int:
    """States of so many parameter sets fit the budget, with what is made of them; a multiple of the lanes."""
    return max(LANES, memory_budget // (64 << num_qubits) // LANES * LANES)


class EngineCache:
    """The engines of one primitive, the least recently used leaving first.

    Args:
        dtype: `float64` or `float32`, what the engines compute in.
        memory_budget: bytes that one engine may use; `None`: the engine's default.
        capacity: engines kept.
    """

    def __init__(self, dtype: str, memory_budget: int | None, capacity: int = 64) -> None:
        self._settings = engine_settings(dtype, memory_budget)
        self._capacity = capacity
        self._engines: OrderedDict[Hashable, ExactEngine] = OrderedDict()
        self.lock = threading.RLock()
        """Held while engines are looked up or run: every job of a primitive has a thread of its own."""

    def __len__(self) -> int:
        return len(self._engines)

    def __getstate__(self) -> dict[str, Any]:
        """Settings only: engines are compiled again where they are needed."""
        return {"_settings": self._settings, "_capacity": self._capacity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._engines = OrderedDict()
        self.lock = threading.RLock()

    def rows_at_once(self, num_qubits: int) -> int:
        """Parameter sets whose states fit the budget."""
        return rows_at_once(num_qubits, self._settings["memory_budget"])

    def get(
        self,
        key: Hashable,
        circuit: Callable[[], QuantumCircuit],
        observables: Callable[[], Sequence[SparsePauliOp]] | None = None,
    ) -> ExactEngine:
        """The engine for a key; every parameter of the circuit is an input, in the order of `circuit.parameters`.

        Args:
            key: `circuit_key` and whatever tells the observables apart.
            circuit: makes the unitary circuit, called where the engine is not yet known.
            observables: makes the observables; `None` for an engine of states and probabilities.
        """
        with self.lock:
            if key in self._engines:
                self._engines.move_to_end(key)
                return self._engines[key]
            bare = circuit()
            engine = ExactEngine(
                bare,
                None if observables is None else observables(),
                input_parameters=tuple(bare.parameters),
                weight_parameters=(),
                **self._settings,
            )
            self._engines[key] = engine
            while len(self._engines) > self._capacity:
                self._engines.popitem(last=False)
            return engine
