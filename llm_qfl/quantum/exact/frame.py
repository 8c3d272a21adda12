"""The index frame: permutations of basis states that cost nothing.

A basis state `b` of the circuit (bit q = qubit q) lies at row `r = A b` of the state array, A invertible over GF(2).
CX and SWAP change A and move no amplitude; X flips a qubit's *sign*. A gate on qubit q pairs the rows `r` and `r ^
x[q]`; the qubit's bit at row r is `parity(z[q] & r) ^ flipped[q]`. (Columns of A, rows of its inverse: the stabilizer
tableau of a CNOT circuit, Aaronson and Gottesman, Phys. Rev. A 70, 052328.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INDEX = NDArray[np.int64]


def parity(value: int) -> int:
    """Parity of the number of ones."""
    return value.bit_count() & 1


class Frame:
    """Linear map from basis states to rows, and one sign per qubit."""

    def __init__(self, num_qubits: int) -> None:
        self.x = [1 << q for q in range(num_qubits)]
        self.z = [1 << q for q in range(num_qubits)]
        self.flipped = [0] * num_qubits

    def cx(self, control: int, target: int) -> None:
        """Controlled NOT."""
        self.x[control] ^= self.x[target]
        self.z[target] ^= self.z[control]
        self.flipped[target] ^= self.flipped[control]

    def flip(self, qubit: int) -> None:
        """NOT."""
        self.flipped[qubit] ^= 1

    def swap(self, first: int, second: int) -> None:
        """Exchange two qubits."""
        for column in (self.x, self.z, self.flipped):
            column[first], column[second] = column[second], column[first]

    def rows(self) -> INDEX:
        """Row of every basis state, shape `(2**n,)`."""
        offset = 0
        for q, flip in enumerate(self.flipped):
            offset ^= self.x[q] * flip
        return span(self.x) ^ offset


def span(basis: list[int]) -> INDEX:
    """XOR of the basis vectors chosen by the bits of 0, 1, ..., shape `(2**len(basis),)`."""
    out = np.zeros(1, dtype=np.int64)
    for vector in basis:
        out = np.concatenate([out, out ^ vector])
    return out


def null_space(vectors: list[int], num_bits: int) -> list[int]:
    """A basis of all v with `parity(v & u) == 0` for every u in `vectors` (linearly independent)."""
    pivots: dict[int, int] = {}
    for vector in vectors:
        for bit, row in pivots.items():
            if vector >> bit & 1:
                vector ^= row  # noqa: PLW2901 - Gaussian elimination
        bit = vector.bit_length() - 1
        for other, row in pivots.items():
            if row >> bit & 1:
                pivots[other] = row ^ vector
        pivots[bit] = vector
    free = [b for b in range(num_bits) if b not in pivots]
    return [(1 << b) | sum(1 << bit for bit, row in pivots.items() if row >> b & 1) for b in free]
