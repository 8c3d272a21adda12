"""What is read from a state: observables or classes of bitstrings, on the rows of the final frame.

Outputs whose traceless parts are proportional share one bra: parity's p0 = (1 + Z..Z)/2 and p1 = 1 - p0 need one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact.frame import Frame

INT = NDArray[np.int64]
FLOAT = NDArray[np.float64]

_REAL = 1e-10
_SAME = 12  # digits to which two normalised observables must agree to share a bra


@dataclass(frozen=True)
class Readout:
    """Tables of the bras (Hermitian, traceless) and how outputs follow: scale * <bra> + offset."""

    diagonal: FLOAT
    """(diagonal bra, row)."""
    diagonal_of: INT
    """(bra,): row of `diagonal`, or -1."""
    off: INT
    """(term, 2): x and z masks of the off-diagonal terms."""
    off_coefficients: FLOAT
    """(term, 2): real and imaginary part."""
    off_range: INT
    """(bra + 1,): where the terms of each bra start."""
    output_bra: INT
    """(output,): bra, or -1 for a constant output."""
    output_scale: FLOAT
    output_offset: FLOAT

    @property
    def num_bras(self) -> int:
        """Bras that a Jacobian needs."""
        return len(self.diagonal_of)


class _Builder:
    def __init__(self) -> None:
        self.diagonal: list[FLOAT] = []
        self.diagonal_of: list[int] = []
        self.off: list[tuple[int, int]] = []
        self.off_coefficients: list[complex] = []
        self.off_range = [0]
        self.outputs: list[tuple[int, float, float]] = []
        self.bras: dict[object, int] = {}

    def output(self, bra: int, scale: float, offset: float) -> None:
        self.outputs.append((bra, scale, offset))

    def bra(self, diagonal: FLOAT | None, off: list[tuple[int, int, complex]]) -> int:
        self.diagonal_of.append(len(self.diagonal) if diagonal is not None else -1)
        if diagonal is not None:
            self.diagonal.append(diagonal)
        self.off += [(x, z) for x, z, _ in off]
        self.off_coefficients += [c for _, _, c in off]
        self.off_range.append(len(self.off))
        return len(self.diagonal_of) - 1

    def build(self, rows: int) -> Readout:
        coefficients = np.array(self.off_coefficients, dtype=np.complex128)
        return Readout(
            diagonal=np.array(self.diagonal, dtype=np.float64).reshape(-1, rows),
            diagonal_of=np.array(self.diagonal_of, dtype=np.int64),
            off=np.array(self.off, dtype=np.int64).reshape(-1, 2),
            off_coefficients=np.stack([coefficients.real, coefficients.imag], axis=1),
            off_range=np.array(self.off_range, dtype=np.int64),
            output_bra=np.array([o[0] for o in self.outputs], dtype=np.int64),
            output_scale=np.array([o[1] for o in self.outputs], dtype=np.float64),
            output_offset=np.array([o[2] for o in self.outputs], dtype=np.float64),
        )


def read_observables(observables: Sequence[SparsePauliOp], frame: Frame) -> Readout:
    """Compile observables.

    Raises:
        CircuitError: an observable acts on another number of qubits, or is not Hermitian.
    """
    builder, n = _Builder(), len(frame.x)
    for position, observable in enumerate(observables):
        if not isinstance(observable, SparsePauliOp):
            observable = SparsePauliOp(observable)  # noqa: PLW2901 - Pauli and label are welcome too
        if observable.num_qubits != n:
            raise CircuitError(f"observable {position} acts on {observable.num_qubits} qubits, the circuit has {n}")
        terms = observable.simplify(atol=0.0)
        if np.any(np.abs(terms.coeffs.imag) > _REAL * (1.0 + np.abs(terms.coeffs.real))):
            raise CircuitError(f"observable {position} is not Hermitian: its coefficients must be real")
        offset, paulis = 0.0, []
        for x, z, coefficient in zip(terms.paulis.x, terms.paulis.z, terms.coeffs.real, strict=True):
            if not x.any() and not z.any():
                offset += float(coefficient)
            elif coefficient:
                paulis.append((_mask(x), _mask(z), float(coefficient)))
        if not paulis:
            builder.output(-1, 0.0, offset)
            continue
        paulis.sort()
        scale = paulis[0][2]
        key = tuple((x, z, round(c / scale, _SAME)) for x, z, c in paulis)
        if key not in builder.bras:
            builder.bras[key] = _pauli_bra(builder, [(x, z, c / scale) for x, z, c in paulis], frame)
        builder.output(builder.bras[key], scale, offset)
    return builder.build(1 << n)


def _mask(bits: NDArray[np.bool_]) -> int:
    return sum(1 << q for q in np.flatnonzero(bits).tolist())


def _pauli_bra(builder: _Builder, paulis: list[tuple[int, int, float]], frame: Frame) -> int:
    diagonal: FLOAT | None = None
    off: list[tuple[int, int, complex]] = []
    rows = np.arange(1 << len(frame.x), dtype=np.int64)
    for x, z, coefficient in paulis:
        row_x = row_z = flipped = 0
        for q in range(len(frame.x)):
            row_x ^= frame.x[q] * (x >> q & 1)
            row_z ^= frame.z[q] * (z >> q & 1)
            flipped ^= frame.flipped[q] & (z >> q & 1)
        signed = -coefficient if flipped else coefficient
        if x:
            off.append((row_x, row_z, signed * 1j ** ((x & z).bit_count() % 4)))
        else:
            term = signed * (1.0 - 2.0 * (np.bitwise_count(rows & row_z) & 1))
            diagonal = term if diagonal is None else diagonal + term
    return builder.bra(diagonal, off)


def read_classes(classes: NDArray[np.intp], num_outputs: int, frame: Frame) -> Readout:
    """Compile a map from bitstrings to outputs.

    Args:
        classes: output of bitstring integer b, shape `(2**n,)`.
        num_outputs: number of outputs.
        frame: frame at the end of the circuit.
    """
    builder = _Builder()
    rows = frame.rows()
    for output in range(num_outputs):
        chosen = classes == output
        share = float(chosen.mean())
        if share in (0.0, 1.0):
            builder.output(-1, 0.0, share)
            continue
        scale = 1.0 if chosen[0] else -1.0  # normalised: positive at bitstring 0
        key = (chosen if chosen[0] else ~chosen).tobytes()
        if key not in builder.bras:
            diagonal = np.empty(len(rows))
            diagonal[rows] = scale * (chosen - share)
            builder.bras[key] = builder.bra(diagonal, [])
        builder.output(builder.bras[key], scale, share)
    return builder.build(len(rows))


def check_classes(classes: NDArray[np.intp], num_outputs: int | None, num_qubits: int) -> tuple[NDArray[np.intp], int]:
    """Validate a class map; returns it and the number of outputs.

    Raises:
        CircuitError: wrong length, type or range.
    """
    table = np.asarray(classes)
    if table.shape != (1 << num_qubits,) or table.dtype.kind not in "iu":
        raise CircuitError(
            f"classes must hold one integer for each of the {1 << num_qubits} bitstrings of {num_qubits} qubits, "
            f"got shape {table.shape} of {table.dtype}"
        )
    count = int(table.max()) + 1 if num_outputs is None else int(num_outputs)
    if table.min() < 0 or table.max() >= count:
        raise CircuitError(f"classes must lie in 0..{count - 1}, got {table.min()}..{table.max()}")
    return table.astype(np.intp), count
