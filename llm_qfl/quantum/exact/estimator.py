"""`ExactEstimator`: Qiskit's estimator primitive (V2) on the exact engine.

A drop-in for `StatevectorEstimator`, which binds, evolves and contracts one parameter set at a time; here all parameter
sets that share a circuit run through one engine in one batch, over all PUBs of a call. Exceptions:
`docs/decisions/0003-drop-in.md`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.primitives import (
    BaseEstimatorV2,
    DataBin,
    EstimatorPubLike,
    PrimitiveJob,
    PrimitiveResult,
    PubResult,
)
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit.quantum_info import SparseObservable, SparsePauliOp

from llm_qfl.quantum.exact.engine_cache import EngineCache, circuit_key
from llm_qfl.quantum.exact.measurement import without_measurements
from llm_qfl.quantum.exact.sampling import sample_expectations

FLOAT = NDArray[np.float64]
INDEX = NDArray[np.int64]

_WASTE = 2
"""Rows times observables may exceed the values asked for by this factor before observables run apart."""


@dataclass
class _Block:
    """One PUB or several, flattened: value i is that of observable `observable[i]` at parameter set `row[i]`.

    Args:
        key: of the circuit.
        circuit: the circuit as sent.
        rows: parameter sets, shape `(N, P)`, in the order of `circuit.parameters`.
        observables: the distinct ones, by what tells them apart.
        row: shape `(values,)`.
        observable: shape `(values,)`.
    """

    key: Hashable
    circuit: QuantumCircuit
    rows: FLOAT
    observables: dict[Hashable, SparseObservable]
    row: INDEX
    observable: INDEX

    def operators(self, which: Iterable[int]) -> list[SparsePauliOp]:
        """Observables as sums of Paulis; projectors are expanded."""
        every = list(self.observables.values())
        return [SparsePauliOp.from_sparse_observable(every[i]) for i in which]


class ExactEstimator(BaseEstimatorV2):  # type: ignore[misc]  # qiskit carries no types here
    """Expectation values from exact simulation, for any circuit of unitary gates.

    Args:
        default_precision: standard deviation of the noise added to a value; 0: exact values.
        seed: of the noise. An integer starts the same stream for every PUB, as in `StatevectorEstimator` (equal
            seeds, equal values); a `Generator` goes on from PUB to PUB.
        sampled: take the noise from shots, `ceil(1 / precision ** 2)` for each group of qubit-wise commuting Paulis,
            as a device and `BackendEstimatorV2` do, in place of a normal distribution; `stds` are then the standard
            errors. Observables of one PUB are sampled independently.
        dtype: `float64` or `float32`, what the engine computes in.
        memory_budget: bytes that the engine may use; `None`: its default.
    """

    def __init__(
        self,
        *,
        default_precision: float = 0.0,
        seed: np.random.Generator | int | None = None,
        sampled: bool = False,
        dtype: str = "float64",
        memory_budget: int | None = None,
    ) -> None:
        self._default_precision = default_precision
        self._seed = seed
        self._sampled = sampled
        self._engines = EngineCache(dtype, memory_budget)

    @property
    def default_precision(self) -> float:
        """Precision of a run that names none."""
        return self._default_precision

    @property
    def seed(self) -> np.random.Generator | int | None:
        """Seed or generator of the noise."""
        return self._seed

    @property
    def sampled(self) -> bool:
        """Does the noise come from shots?"""
        return self._sampled

    def run(
        self, pubs: Iterable[EstimatorPubLike], *, precision: float | None = None
    ) -> PrimitiveJob[PrimitiveResult[PubResult]]:
        """Estimate expectation values.

        Args:
            pubs: `(circuit, observables, parameter values, precision)`, the last two optional.
            precision: for PUBs that name none; `None`: `default_precision`.

        Returns:
            A job whose result holds `evs` and `stds` of each PUB's broadcast shape.

        Raises:
            ValueError: a PUB's parts do not fit together.
            CircuitError: (from the job) a circuit holds more than unitary gates and final measurements.
        """
        coerced = [
            EstimatorPub.coerce(pub, self._default_precision if precision is None else precision) for pub in pubs
        ]
        job = PrimitiveJob(self._run, coerced)
        job._submit()
        return job

    def _run(self, pubs: list[EstimatorPub]) -> PrimitiveResult[PubResult]:
        with self._engines.lock:
            keys: dict[int, Hashable] = {}  # by identity: the PUBs hold the circuits for the length of this call
            for pub in pubs:
                if id(pub.circuit) not in keys:
                    keys[id(pub.circuit)] = circuit_key(pub.circuit)
            blocks = [_flatten(pub, keys[id(pub.circuit)]) for pub in pubs]
            if self._sampled:
                noisy = [self._measure(block, pub.precision) for block, pub in zip(blocks, pubs, strict=True)]
            else:
                exact = self._exact(blocks)
                noisy = [self._blur(values, pub.precision) for values, pub in zip(exact, pubs, strict=True)]
        return PrimitiveResult(
            [_result(pub, *values) for pub, values in zip(pubs, noisy, strict=True)], metadata={"version": 2}
        )

    def _exact(self, blocks: list[_Block]) -> list[FLOAT]:
        """Exact values of every block: one engine run for all that share circuit and observables."""
        merged, members = _merged(blocks)
        values = [np.zeros(len(block.row)) for block in merged]
        parts: dict[Hashable, list[tuple[int, list[int]]]] = defaultdict(list)
        for at, block in enumerate(merged):
            names = list(block.observables)
            for which in _columns(block):
                parts[block.key, tuple(names[i] for i in which)].append((at, which))
        for key, entries in parts.items():
            self._exact_part(key, [(merged[at], which, values[at]) for at, which in entries])
        out: list[FLOAT] = [np.zeros(0)] * len(blocks)
        for together, found in zip(members, values, strict=True):
            ends = np.cumsum([len(blocks[at].row) for at in together])
            for at, piece in zip(together, np.split(found, ends[:-1]), strict=True):
                out[at] = piece
        return out

    def _exact_part(self, key: Hashable, parts: list[tuple[_Block, list[int], FLOAT]]) -> None:
        """Fill in the values of some observables of blocks that share them and the circuit."""
        first, wanted, _ = parts[0]
        engine = self._engines.get(key, lambda: without_measurements(first.circuit), lambda: first.operators(wanted))
        masks = [np.isin(block.observable, which) for block, which, _ in parts]
        used = [
            np.unique(block.row[mask], return_inverse=True) for (block, _, _), mask in zip(parts, masks, strict=True)
        ]
        rows = np.concatenate([block.rows[needed] for (block, _, _), (needed, _) in zip(parts, used, strict=True)])
        if not len(rows):
            return
        results = np.asarray(engine.expectations(rows, np.zeros(0)), dtype=np.float64)
        start = 0
        for (block, which, values), mask, (needed, inverse) in zip(parts, masks, used, strict=True):
            column = np.zeros(len(block.observables), dtype=np.int64)
            column[which] = np.arange(len(which))
            values[mask] = results[start : start + len(needed)][inverse, column[block.observable[mask]]]
            start += len(needed)

    def _blur(self, values: FLOAT, precision: float) -> tuple[FLOAT, FLOAT]:
        if precision != 0:
            values = np.asarray(np.random.default_rng(self._seed).normal(values, precision))
        return values, np.zeros_like(values)

    def _measure(self, block: _Block, precision: float) -> tuple[FLOAT, FLOAT]:
        if precision == 0:
            return self._blur(self._exact([block])[0], 0.0)
        rng = np.random.default_rng(self._seed)
        engine = self._engines.get((block.key, "states"), lambda: without_measurements(block.circuit))
        values, errors = np.zeros(len(block.row)), np.zeros(len(block.row))
        operators = block.operators(range(len(block.observables)))
        step = self._engines.rows_at_once(block.circuit.num_qubits)
        for start in range(0, len(block.rows), step):
            states = np.asarray(engine.states(block.rows[start : start + step], np.zeros(0)), dtype=np.complex128)
            here = (block.row >= start) & (block.row < start + step)
            for i, operator in enumerate(operators):
                at = np.flatnonzero(here & (block.observable == i))
                found = sample_expectations(states[block.row[at] - start], [operator], shots_for(precision), rng)
                values[at], errors[at] = found[0][:, 0], found[1][:, 0]
        return values, errors


def paulis_of(observables: Sequence[object]) -> list[SparsePauliOp]:
    """Whatever Qiskit's primitives take as observables, as sums of Paulis.

    Raises:
        ValueError: one is not Hermitian or is zero.
        TypeError: one is of no type that the primitives take.
    """
    return [SparsePauliOp.from_sparse_observable(ObservablesArray.coerce_observable(o)) for o in observables]


def shots_for(precision: float) -> int:
    """Shots for a precision, `ceil(1 / precision ** 2)`; rounding errors do not count as a shot."""
    exact = 1.0 / precision**2
    return round(exact) if math.isclose(exact, round(exact), rel_tol=1e-9) else math.ceil(exact)


def _flatten(pub: EstimatorPub, key: Hashable) -> _Block:
    points = pub.parameter_values.as_array(pub.circuit.parameters)
    sent = pub.observables.sparse_observables_array()
    observables: dict[Hashable, SparseObservable] = {}
    order: dict[Hashable, int] = {}
    which = np.zeros(sent.shape, dtype=np.int64)
    for at, observable in np.ndenumerate(sent):
        name = _name(observable)
        which[at] = order.setdefault(name, len(order))
        observables.setdefault(name, observable)
    shape = pub.parameter_values.shape
    count = math.prod(shape)
    row, observable_of = np.broadcast_arrays(np.arange(count).reshape(shape), which)
    rows = np.asarray(points, dtype=np.float64).reshape(count, pub.circuit.num_parameters)
    return _Block(key, pub.circuit, rows, observables, row.reshape(-1), observable_of.reshape(-1))


def _merged(blocks: list[_Block]) -> tuple[list[_Block], list[list[int]]]:
    """Blocks of one circuit at the same parameter sets become one, which has the observables of all.

    Returns:
        The merged blocks, and the positions in `blocks` of what each holds, one after another.
    """
    same: dict[Hashable, list[int]] = defaultdict(list)
    for at, block in enumerate(blocks):
        same[block.key, block.rows.shape, block.rows.tobytes()].append(at)
    merged = []
    for together in same.values():
        observables: dict[Hashable, SparseObservable] = {}
        for at in together:
            observables |= blocks[at].observables
        position = {name: i for i, name in enumerate(observables)}
        columns = [
            np.array([position[name] for name in blocks[at].observables], dtype=np.int64)[blocks[at].observable]
            for at in together
        ]
        first = blocks[together[0]]
        row = np.concatenate([blocks[at].row for at in together])
        merged.append(_Block(first.key, first.circuit, first.rows, observables, row, np.concatenate(columns)))
    return merged, list(same.values())


def _name(observable: SparseObservable) -> Hashable:
    parts = (observable.coeffs, observable.bit_terms, observable.indices, observable.boundaries)
    return observable.num_qubits, *(np.asarray(part).tobytes() for part in parts)


def _columns(block: _Block) -> list[list[int]]:
    """Observables that run together: all of them, or each alone where few of the combinations are asked for."""
    everything = list(range(len(block.observables)))
    if len(block.rows) * len(everything) <= _WASTE * len(block.row):
        return [everything]
    return [[i] for i in everything]


def _result(pub: EstimatorPub, values: FLOAT, errors: FLOAT) -> PubResult:
    values, errors = values.reshape(pub.shape), errors.reshape(pub.shape)
    return PubResult(
        DataBin(evs=values, stds=errors, shape=values.shape),
        metadata={"target_precision": pub.precision, "circuit_metadata": pub.circuit.metadata},
    )
