"""Expectation values as a device measures them: shots in one basis for each group of Paulis.

Qubit-wise commuting Paulis are measured together, each group with all shots, as Qiskit's `BackendEstimatorV2` does
with `abelian_grouping`; the state is exact, so the shots are the only noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qiskit.quantum_info import PauliList, SparsePauliOp

from llm_qfl.quantum.exact.sampling import sample_counts

FLOAT = NDArray[np.float64]
COMPLEX = NDArray[np.complex128]

_HALF = np.sqrt(0.5)
_X_BASIS = np.array([[_HALF, _HALF], [_HALF, -_HALF]], dtype=np.complex128)
_Y_BASIS = np.array([[_HALF, -1j * _HALF], [_HALF, 1j * _HALF]], dtype=np.complex128)


@dataclass(frozen=True)
class Group:
    """Paulis that one measurement basis serves.

    Args:
        rotations: (qubit, 2x2 basis change) before the measurement.
        outcomes: what each measured bit string adds to the expectation value, shape `(2**n,)`.
        spread: coefficient and sign row of each Pauli, for the standard error.
    """

    rotations: tuple[tuple[int, COMPLEX], ...]
    outcomes: FLOAT
    spread: tuple[tuple[float, FLOAT], ...]


def groups(observable: SparsePauliOp) -> list[Group]:
    """The measurement bases of an observable, qubit-wise commuting Paulis together."""
    observable = observable.simplify()
    strengths = dict(zip(observable.paulis.to_labels(), observable.coeffs.real, strict=True))
    return [
        _group(paulis, [float(strengths[label]) for label in paulis.to_labels()])
        for paulis in observable.paulis.group_commuting(qubit_wise=True)
    ]


def _group(paulis: PauliList, coefficients: Sequence[float]) -> Group:
    num_qubits = paulis.num_qubits
    x, z = paulis.x.any(axis=0), (paulis.z & paulis.x).any(axis=0)
    rotations = tuple((q, _Y_BASIS if z[q] else _X_BASIS) for q in range(num_qubits) if x[q])
    states = np.arange(2**num_qubits, dtype=np.int64)
    spread = []
    for support, coefficient in zip(paulis.x | paulis.z, coefficients, strict=True):
        mask = int(sum(1 << q for q in np.flatnonzero(support)))
        spread.append((coefficient, 1.0 - 2.0 * (np.bitwise_count(states & mask) & 1)))
    outcomes = np.sum([coefficient * signs for coefficient, signs in spread], axis=0)
    return Group(rotations, outcomes, tuple(spread))


def sampled_expectations(
    states: COMPLEX, observable_groups: Sequence[Group], shots: int, rng: np.random.Generator
) -> tuple[FLOAT, FLOAT]:
    """Estimates from shots and their standard errors.

    Args:
        states: shape `(N, 2**n)`.
        observable_groups: from `groups`.
        shots: shots of each group.
        rng: where the outcomes come from.

    Returns:
        Means and standard errors, shape `(N,)` each; the error is
        `sum_i |a_i| sqrt(Var(P_i) / shots)`, the estimate of `BackendEstimatorV2`.
    """
    means, errors = np.zeros(len(states)), np.zeros(len(states))
    for group in observable_groups:
        rotated = states
        for qubit, matrix in group.rotations:
            rotated = _rotated(rotated, qubit, matrix)
        counts = sample_counts(np.abs(rotated) ** 2, shots, rng) / shots
        means += counts @ group.outcomes
        for coefficient, signs in group.spread:
            errors += abs(coefficient) * np.sqrt(np.maximum(1.0 - (counts @ signs) ** 2, 0.0) / shots)
    return means, errors


def _rotated(states: COMPLEX, qubit: int, matrix: COMPLEX) -> COMPLEX:
    """A 2x2 matrix on one qubit of every state."""
    split = states.reshape(len(states), -1, 2, 2**qubit)
    return np.einsum("ab,nhbl->nhal", matrix, split).reshape(states.shape)
