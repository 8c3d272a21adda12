"""Derivatives of many probabilities at once, in forward mode.

A read-out with more outputs than the circuit has angles (each bitstring its own output) would need a bra an output. The
other way round costs one evolution an angle: `exp(-i (t + pi)/2 s) = -i s exp(-i t/2 s)`, hence the derivative of the
state by an angle is half the state at that angle plus pi, and that of a probability is `Re conj(psi) psi_shifted`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_qfl.quantum.exact.adjoint import Batch, Sweeper
from llm_qfl.quantum.exact.lanes import LANES

FLOAT = NDArray[np.float64]


class ClassSums:
    """Adds the probabilities of the bitstrings of each class.

    Args:
        classes: output of bitstring integer b, shape `(2**n,)`.
        num_outputs: number of outputs.
        rows: row of bitstring integer b in the final frame.
    """

    def __init__(self, classes: NDArray[np.intp], num_outputs: int, rows: NDArray[np.int64]) -> None:
        order = np.argsort(classes, kind="stable")
        self._rows = rows[order]
        self._present, self._starts = np.unique(classes[order], return_index=True)
        self._num_outputs = num_outputs

    def __call__(self, amplitudes: NDArray[Any], other: NDArray[Any], samples: int) -> FLOAT:
        """Sums over each class of `Re conj(amplitude) * other`, shape `(samples, outputs)`.

        Args:
            amplitudes: shape `(blocks, rows, 2, LANES)`.
            other: of the same shape.
            samples: rows of the result; further lanes are padding.
        """
        products = amplitudes[:, :, 0] * other[:, :, 0]
        products += amplitudes[:, :, 1] * other[:, :, 1]
        sums = np.add.reduceat(products[:, self._rows].astype(np.float64, copy=False), self._starts, axis=1)
        out = np.zeros((len(sums) * LANES, self._num_outputs))
        out[:, self._present] = sums.transpose(0, 2, 1).reshape(len(out), -1)
        return out[:samples]


def class_probabilities(sweeper: Sweeper, batch: Batch, sums: ClassSums) -> FLOAT:
    """Probabilities of the classes, shape `(N, K)`."""
    states = _evolved(sweeper, batch)
    return sums(states, states, batch.samples)


def class_jacobian(sweeper: Sweeper, batch: Batch, sums: ClassSums, wanted: int) -> tuple[FLOAT, FLOAT]:
    """Probabilities of the classes `(N, K)` and their derivatives `(N, K, columns)`, columns as of `Sweeper.sweep`."""
    tape = sweeper.tape
    columns, width = sweeper.columns(wanted)
    states = _evolved(sweeper, batch)
    values = sums(states, states, batch.samples)
    out = np.zeros((*values.shape, width))
    known = len(batch.shared)
    for per_sample, slot, gradient in _gradient_slots(tape.factors, tape.terms):
        if not tape.gradient_roles[gradient] & wanted:
            continue
        shifted = _evolved(sweeper, _shifted(sweeper, batch, per_sample, slot))
        by_angle = sums(states, shifted, batch.samples)
        for (_, parameter, value), slope in zip(
            tape.derivatives[tape.derivatives[:, 0] == gradient],
            tape.slopes[tape.derivatives[:, 0] == gradient],
            strict=True,
        ):
            if columns[parameter] >= 0:
                factor = batch.shared[value] if value < known else batch.sample[value - known, : batch.samples, None]
                out[..., columns[parameter]] += slope * factor * by_angle
    return values, out


def _gradient_slots(*tables: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(per sample?, slot, gradient slot) of every angle that depends on a parameter."""
    return [(int(row[1]), int(row[2]), int(row[3])) for table in tables for row in table if row[3] >= 0]


def _shifted(sweeper: Sweeper, batch: Batch, per_sample: int, slot: int) -> Batch:
    """The batch with one angle plus pi: half the angle turns by a right angle."""
    halves = [half.copy() for half in batch.half_angles]
    stride = batch.blocks * LANES if per_sample else 1
    count = sweeper.tape.sample_slots if per_sample else sweeper.tape.shared_slots
    cos, sin = slice(slot * stride, (slot + 1) * stride), slice((count + slot) * stride, (count + slot + 1) * stride)
    half = halves[per_sample]
    half[cos], half[sin] = -half[sin], half[cos].copy()
    if per_sample:
        return replace(batch, half_angles=(halves[0], halves[1]))
    raised = batch.shared_half.copy()
    raised[slot] += np.pi / 2
    return replace(batch, half_angles=(halves[0], halves[1]), shared_half=raised, tables=sweeper.phase_tables(raised))


def _evolved(sweeper: Sweeper, batch: Batch) -> NDArray[Any]:
    flat = sweeper.evolve(batch, (0, len(sweeper.tape.steps)), np.zeros(0, sweeper.dtype))
    return flat.reshape(batch.blocks, sweeper.size, 2, LANES)
