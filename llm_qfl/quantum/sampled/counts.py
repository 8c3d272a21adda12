"""Observables read from counts: terms that commute qubit by qubit share a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.types import Array

Counts = Mapping[int, float]
"""Outcome as an integer (bit q = qubit q) -> counts, or a quasi-probability."""


@dataclass(frozen=True, eq=False)
class Basis:
    """One measurement and what is read from it.

    Attributes:
        labels: X, Y or Z of each qubit, qubit 0 first.
        masks: T terms, as the qubits whose parity is taken.
        coefficients: (K, T) of the observables.
    """

    labels: str
    masks: NDArray[np.uint64]
    coefficients: Array

    def measured(self, circuit: QuantumCircuit) -> QuantumCircuit:
        """The circuit turned into this basis, every qubit measured into the bit of its number."""
        out: QuantumCircuit = circuit.copy()
        for qubit, label in enumerate(self.labels):
            if label == "Y":
                out.sdg(qubit)
            if label in "XY":
                out.h(qubit)
        out.measure_all()
        return out

    def values(self, outcomes: Array | Sequence[Counts]) -> Array:
        """This basis' part of the expectation values (M, K).

        Args:
            outcomes: counts (M, 2^n), or a mapping for each point.
        """
        if isinstance(outcomes, np.ndarray):
            signs = 1.0 - 2.0 * (
                np.bitwise_count(np.arange(outcomes.shape[1], dtype=np.uint64)[:, None] & self.masks) & 1
            )
            return np.asarray((outcomes @ signs) / outcomes.sum(axis=1, keepdims=True) @ self.coefficients.T)
        return self._values_of_mappings(outcomes)

    def _values_of_mappings(self, counts: Sequence[Counts]) -> Array:
        sizes = [len(one) for one in counts]
        outcomes = np.fromiter((key for one in counts for key in one), np.uint64, sum(sizes))
        weights = np.fromiter((value for one in counts for value in one.values()), np.float64, sum(sizes))
        owner = np.repeat(np.arange(len(counts)), sizes)
        total = np.bincount(owner, weights, len(counts))
        terms = np.empty((len(counts), len(self.masks)))
        for number, mask in enumerate(self.masks):
            signs = 1.0 - 2.0 * (np.bitwise_count(outcomes & mask) & 1)
            terms[:, number] = np.bincount(owner, weights * signs, len(counts)) / total
        return np.asarray(terms @ self.coefficients.T)


def mappings(outcomes: Array | list[Counts]) -> list[Counts]:
    """Counts (M, 2^n) as a mapping for each point, without the zeros."""
    if not isinstance(outcomes, np.ndarray):
        return outcomes
    return [{int(key): float(row[key]) for key in np.flatnonzero(row)} for row in outcomes]


def bases(observables: Sequence[SparsePauliOp]) -> tuple[list[Basis], Array]:
    """The fewest measurements found for these observables, and their constant parts (K,).

    Raises:
        ValueError: a coefficient is not real.
    """
    width = observables[0].num_qubits
    table: dict[str, Array] = {}
    for number, operator in enumerate(observables):
        for label, coefficient in operator.to_list():
            if abs(coefficient.imag) > 1e-12:
                raise ValueError(f"observable {number}: expected real coefficients, got {coefficient} for {label}")
            table.setdefault(label, np.zeros(len(observables)))[number] += coefficient.real
    constant = table.pop("I" * width, np.zeros(len(observables)))
    if not table:
        return [], constant
    groups = SparsePauliOp(list(table)).group_commuting(qubit_wise=True)
    return [_basis([str(label) for label in group.paulis.to_labels()], table) for group in groups], constant


def _basis(labels: list[str], table: Mapping[str, Array]) -> Basis:
    flipped = [label[::-1] for label in labels]  # Qiskit writes qubit 0 last
    together = ["Z"] * len(flipped[0])
    for label in flipped:
        for qubit, letter in enumerate(label):
            if letter != "I":
                together[qubit] = letter
    masks = [sum(1 << qubit for qubit, letter in enumerate(label) if letter != "I") for label in flipped]
    return Basis("".join(together), np.array(masks, np.uint64), np.stack([table[label] for label in labels], axis=1))
