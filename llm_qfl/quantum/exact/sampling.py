"""Shots drawn from the exact distribution: what a noiseless device would return.

An expectation is measured as Qiskit's `BackendEstimatorV2` does it: the terms of an observable are grouped into
qubit-wise commuting sets, each set is measured in its basis with all the shots, and the means of the terms are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.errors import CircuitError

FLOAT = NDArray[np.float64]
COMPLEX = NDArray[np.complex128]
COUNTS = NDArray[np.int64]

_TO_Z = {
    "X": np.array([[1, 1], [1, -1]]) / np.sqrt(2),
    "Y": np.array([[1, -1j], [1, 1j]]) / np.sqrt(2),
}


@dataclass(frozen=True)
class MeasurementGroup:
    """Terms that one measurement basis serves.

    Args:
        basis: `I`, `X`, `Y` or `Z` of each qubit, qubit 0 first; `I` where no term looks.
        masks: qubits of each term, as a bit mask.
        coefficients: coefficient of each term.
    """

    basis: str
    masks: tuple[int, ...]
    coefficients: tuple[float, ...]

    def eigenvalues(self) -> FLOAT:
        """Sum of the terms for each measured bitstring, shape `(2**n,)`."""
        index = np.arange(1 << len(self.basis))
        signs = [1.0 - 2.0 * (np.bitwise_count(index & mask) & 1) for mask in self.masks]
        return np.asarray(np.tensordot(self.coefficients, np.array(signs), axes=1))


def sample_counts(probabilities: FLOAT, shots: int, rng: np.random.Generator) -> COUNTS:
    """Counts of every bitstring, shape `(N, 2**n)`: one multinomial draw a row.

    Args:
        probabilities: shape `(N, 2**n)`; rows sum to 1 up to rounding.
        shots: number of shots, at least 1.
        rng: source of randomness.

    Raises:
        CircuitError: `shots` is less than 1.
    """
    if shots < 1:
        raise CircuitError(f"shots must be at least 1, got {shots}")
    p = np.maximum(np.asarray(probabilities, dtype=np.float64), 0.0)
    return np.asarray(rng.multinomial(shots, p / p.sum(axis=-1, keepdims=True)), dtype=np.int64)


def measurement_groups(observable: SparsePauliOp) -> tuple[float, list[MeasurementGroup]]:
    """Constant part and qubit-wise commuting groups of a Hermitian observable."""
    terms = observable.simplify(atol=0.0)
    constant, groups = 0.0, []
    for group in terms.group_commuting(qubit_wise=True):
        n = group.num_qubits
        basis, masks, coefficients = ["I"] * n, [], []
        for label, coefficient in zip(group.paulis.to_labels(), group.coeffs.real, strict=True):
            letters = label[::-1]
            mask = sum(1 << q for q, letter in enumerate(letters) if letter != "I")
            if not mask:
                constant += float(coefficient)
                continue
            basis = [letter if letter != "I" else old for letter, old in zip(letters, basis, strict=True)]
            masks.append(mask)
            coefficients.append(float(coefficient))
        if masks:
            groups.append(MeasurementGroup("".join(basis), tuple(masks), tuple(coefficients)))
    return constant, groups


def basis_probabilities(states: COMPLEX, basis: str) -> FLOAT:
    """Probabilities of the outcomes in a product basis, shape `(N, 2**n)`.

    Args:
        states: shape `(N, 2**n)`, Qiskit's order.
        basis: `I`, `X`, `Y` or `Z` of each qubit, qubit 0 first.
    """
    rotated = states
    for qubit, letter in enumerate(basis):
        if letter in _TO_Z:
            split = rotated.reshape(len(states), -1, 2, 1 << qubit)
            rotated = np.einsum("ab,nhbl->nhal", _TO_Z[letter], split).reshape(states.shape)
    return np.asarray(np.abs(rotated) ** 2)


def sample_expectations(
    states: COMPLEX, observables: list[SparsePauliOp], shots: int, rng: np.random.Generator
) -> tuple[FLOAT, FLOAT]:
    """Expectations from `shots` shots a group, and their standard errors, both `(N, K)`.

    Args:
        states: shape `(N, 2**n)`, Qiskit's order.
        observables: K Hermitian operators; each is measured on its own.
        shots: shots of each measurement group.
        rng: source of randomness.
    """
    values = np.zeros((len(states), len(observables)))
    variances = np.zeros_like(values)
    for k, observable in enumerate(observables):
        constant, groups = measurement_groups(observable)
        values[:, k] = constant
        for group in groups:
            counts = sample_counts(basis_probabilities(states, group.basis), shots, rng)
            outcomes = group.eigenvalues()
            mean = counts @ outcomes / shots
            values[:, k] += mean
            variances[:, k] += np.maximum(counts @ outcomes**2 / shots - mean**2, 0.0) / shots
    return values, np.sqrt(variances)
