"""Runs the kernels over a batch: memory, threads, encoded states."""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact import kernels
from llm_qfl.quantum.exact.compile import INPUTS, PASS_QUBITS, WEIGHTS, Tape
from llm_qfl.quantum.exact.lanes import LANES
from llm_qfl.quantum.exact.readout import Readout
from llm_qfl.quantum.exact.threads import run_shares

FLOAT = NDArray[np.float64]
COMPLEX = NDArray[np.complex128]

_TAG = (0,) * LANES
_ALIGN = 64
_INLINE = 150_000.0
"""Amplitude-gates below which a second thread costs more than it saves."""
_KEPT_SETS = 4
_NONE = np.zeros((0, 0))


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Uninitialised memory that starts at a cache line."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGN, dtype=np.uint8)
    skip = -raw.ctypes.data % _ALIGN
    return raw[skip : skip + size].view(dtype).reshape(shape)


@dataclass
class Batch:
    """Angles of one batch of samples, ready for the kernels."""

    samples: int
    blocks: int
    shared: FLOAT
    sample: NDArray[Any]
    shared_half: FLOAT
    half_angles: tuple[NDArray[Any], NDArray[Any]]
    tables: NDArray[Any]
    slopes: list[tuple[int, list[FLOAT]]]
    """(function, derivatives by its arguments), where an expression is no polynomial."""


class Sweeper:
    """Kernels, workspaces and kept states of one tape.

    Args:
        tape: compiled circuit.
        readout: compiled observables.
        dtype: `float64` or `float32` for the amplitudes; angles and results are float64.
        memory_budget: bytes for workspaces and, half of it, for kept states.
        threads: most threads of a call.
    """

    def __init__(self, tape: Tape, readout: Readout, dtype: str, memory_budget: int, threads: int) -> None:
        self.tape, self.readout = tape, readout
        self.dtype = np.dtype(dtype)
        self.size = 1 << tape.num_qubits
        self.state_bytes = self.size * 2 * LANES * self.dtype.itemsize
        self._budget = memory_budget
        self.threads, self.chunk = self._fit(threads)
        self._pool: deque[tuple[int, tuple[Any, ...], NDArray[Any]]] = deque(maxlen=threads)
        self._kept: OrderedDict[bytes, NDArray[Any]] = OrderedDict()
        self._lock = Lock()
        self._tape = (tape.steps, tape.groups, tape.terms, tape.rows)
        self._slots = (tape.shared_slots, tape.sample_slots)
        self._counts = (tape.shared_groups, tape.sample_groups)
        self._readout = (
            readout.diagonal.astype(self.dtype).ravel() if readout.diagonal.size else np.zeros(1, self.dtype),
            readout.diagonal_of,
            readout.off,
            readout.off_coefficients,
            readout.off_range,
        )
        self._outputs = (readout.output_bra, readout.output_scale, readout.output_offset)
        self._encodes = tape.encoding_steps > 0
        self._work_per_block = LANES * self.size * max(1, len(tape.groups)) * 1.0

    def memory(self, threads: int, chunk: int) -> int:
        """Bytes of workspace: each thread holds a ket, a copy of it where bras come in chunks, and the bras."""
        copies = 1 + chunk + (1 if chunk < self.readout.num_bras else 0)
        return threads * copies * self.state_bytes + self.readout.diagonal.size * self.dtype.itemsize

    def _fit(self, threads: int) -> tuple[int, int]:
        """Threads and bras at a time that fit the budget: fewer bras first, then fewer threads."""
        wanted = max(2, self.readout.num_bras)
        for count in range(threads, 0, -1):
            chunk = wanted
            while chunk > 2 and self.memory(count, chunk) > self._budget:
                chunk = -(-chunk // 2)
            if self.memory(count, chunk) <= self._budget:
                return count, chunk
        need, n = self.memory(1, 2), self.tape.num_qubits
        raise CircuitError(
            f"{n} qubits are too many for the memory budget: {LANES} samples at a time x 2**{n} amplitudes x "
            f"{2 * self.dtype.itemsize} bytes = {self.state_bytes:,} bytes a state, with ket and bras {need:,} bytes; "
            f"the budget is {self._budget:,}. Use fewer qubits, float32 or a larger memory_budget"
        )

    def prepare(self, inputs: FLOAT, weights: FLOAT, slopes: bool = False) -> Batch:
        """Evaluate all angles of a batch."""
        tape = self.tape
        samples = len(inputs)
        blocks = -(-samples // LANES)
        functions_shared = [f for f in tape.functions if not f.per_sample]
        functions_sample = [f for f in tape.functions if f.per_sample]
        shared = np.empty(tape.num_shared_values)
        shared[0] = 1.0
        shared[1 : 1 + tape.num_weights] = weights
        for i, function in enumerate(functions_shared):
            shared[1 + tape.num_weights + i] = function.value(inputs, weights)
        sample = np.zeros((tape.num_inputs + len(functions_sample), blocks * LANES))
        sample[: tape.num_inputs, :samples] = inputs.T
        for i, function in enumerate(functions_sample):
            sample[tape.num_inputs + i, :samples] = function.value(inputs, weights)
        shared_half, sample_half = np.empty(tape.shared_slots), np.empty((tape.sample_slots, blocks * LANES))
        kernels.angles(tape.monomials, tape.coefficients, shared, sample, shared_half, sample_half)
        if not (np.isfinite(shared_half).all() and np.isfinite(sample_half).all()):
            raise CircuitError("an angle is not finite: look for NaN or infinity among the inputs and weights")
        half = (self._cos_sin(shared_half), self._cos_sin(sample_half))
        return Batch(
            samples,
            blocks,
            shared,
            sample if self.dtype == np.float64 else sample.astype(self.dtype),
            shared_half,
            half,
            self.phase_tables(shared_half),
            [(i, f.derivatives(inputs, weights)) for i, f in enumerate(tape.functions)] if slopes else [],
        )

    def _cos_sin(self, half: FLOAT) -> NDArray[Any]:
        flat = half.ravel()
        out = np.empty((2, flat.size))
        np.cos(flat, out=out[0])
        np.sin(flat, out=out[1])
        return out.ravel().astype(self.dtype, copy=False)

    def phase_tables(self, shared_half: FLOAT) -> NDArray[Any]:
        """Cosines and negative sines of the phases that all samples share: (table, 2 * rows)."""
        if not self.tape.shared_tables:
            return np.zeros((1, 2), self.dtype)
        sums = np.empty((self.tape.shared_tables, self.size))
        kernels.phase_tables(self.tape.steps, self.tape.terms, shared_half, self.size, sums)
        return np.concatenate([np.cos(sums), -np.sin(sums)], axis=1).astype(self.dtype, copy=False)

    def evolve(self, batch: Batch, steps: tuple[int, int], source: NDArray[Any]) -> NDArray[Any]:
        """States after a range of steps, flat: (block, row, re/im, lane)."""
        target = aligned((batch.blocks * self.size * 2 * LANES,), self.dtype)
        tape = self.tape

        def share(first: int, last: int) -> None:
            work = self._small()
            kernels.evolve(
                _TAG,
                (first, last),
                steps,
                self.size,
                self._tape,
                tape.factors,
                tape.fixed,
                self._slots,
                batch.half_angles,
                batch.blocks * LANES,
                self._counts,
                batch.tables,
                source,
                target,
                work,
            )

        run_shares(share, batch.blocks, self._shares(batch))
        return target

    def sweep(self, batch: Batch, mode: int, wanted: int, inputs: FLOAT, cotangent: FLOAT) -> tuple[FLOAT, FLOAT]:
        """Values (sample, output) and gradients: (sample, output, column), or (block, 1, column) for a product.

        Columns are the wanted ones of weights, inputs, functions, in this order.
        """
        tape = self.tape
        columns, width = self.columns(wanted)
        first_step, source = 0, np.zeros(0, self.dtype)
        if self._encodes and not wanted & INPUTS:
            kept = self._encoded(batch, inputs)
            if kept is not None:
                first_step, source = tape.encoding_steps, kept
        outputs = len(self._outputs[0])
        values = np.empty((batch.samples, outputs))
        lead = (batch.blocks, 1) if mode == kernels.VECTOR else (batch.samples, outputs)
        # Outputs without a bra are constant: their gradients stay zero.
        gradients = np.zeros((*(lead if mode else (0, 0)), width))
        results = (values, gradients)

        def share(first: int, last: int) -> None:
            chunk, work, memory = self._borrow(mode)
            kernels.sweep(
                _TAG,
                mode,
                wanted,
                (first, last),
                batch.samples,
                first_step,
                tape.first_step[wanted],
                self.size,
                self._tape,
                tape.factors,
                tape.fixed,
                self._slots,
                batch.half_angles,
                batch.blocks * LANES,
                self._counts,
                batch.tables,
                source,
                self._readout,
                self._outputs,
                tape.gradient_roles,
                tape.derivatives,
                tape.slopes,
                columns,
                batch.shared,
                batch.sample,
                work,
                results,
                cotangent,
                chunk,
            )
            self._pool.append((mode, work, memory))

        run_shares(share, batch.blocks, self._shares(batch))
        return values, gradients

    def columns(self, wanted: int) -> tuple[NDArray[np.int64], int]:
        """Output column of each parameter (-1: not wanted), and their number."""
        tape = self.tape
        roles = [WEIGHTS] * tape.num_weights + [INPUTS] * tape.num_inputs + [WEIGHTS | INPUTS] * len(tape.functions)
        columns = np.full(max(1, tape.num_columns), -1, dtype=np.int64)
        chosen = [i for i, role in enumerate(roles) if role & wanted]
        columns[chosen] = np.arange(len(chosen))
        return columns, len(chosen)

    def _shares(self, batch: Batch) -> int:
        return self.threads if batch.blocks * self._work_per_block > _INLINE else 1

    def _small(self) -> tuple[NDArray[Any], ...]:
        tape = self.tape
        local = min(self.size, 1 << PASS_QUBITS)
        return (
            aligned((local * 2 * LANES,), self.dtype),
            aligned((max(1, len(tape.groups)) * 4 * LANES,), self.dtype),
            aligned((max(1, tape.sample_slots) * 3 * LANES,), self.dtype),
        )

    def _borrow(self, mode: int) -> tuple[int, tuple[Any, ...], NDArray[Any]]:
        """A workspace that no other thread holds."""
        tape = self.tape
        chunk = min(self.chunk, max(1, self.readout.num_bras)) if mode == kernels.JACOBIAN else 1
        for _ in range(len(self._pool)):
            try:
                kept = self._pool.popleft()
            except IndexError:
                break
            if kept[0] == mode:
                return chunk, kept[1], kept[2]
        bras = {kernels.VALUES: 1, kernels.VECTOR: 2}.get(mode, chunk)
        state = self.size * 2 * LANES
        saved = state if mode == kernels.JACOBIAN and chunk < self.readout.num_bras else LANES
        memory = aligned((state * (1 + bras) + saved,), self.dtype)
        work = (
            *self._small(),
            memory[:state],
            memory[state : state + saved],
            memory[state + saved :],
            aligned((min(self.size, 1 << PASS_QUBITS) * 2 * LANES,), self.dtype),
            aligned((chunk * PASS_QUBITS * 3 * LANES,), self.dtype),
            aligned((max(1, chunk * len(tape.gradient_roles)) * LANES,), self.dtype),
            aligned((max(1, tape.num_columns) * LANES,), self.dtype),
            aligned((max(1, self.readout.num_bras) * 2 * LANES,), self.dtype),
        )
        return chunk, work, memory

    def _encoded(self, batch: Batch, inputs: FLOAT) -> NDArray[Any] | None:
        """States behind the encoding, kept per data set; None where they would not fit half the budget."""
        need = batch.blocks * self.state_bytes
        if need > self._budget // 2:
            return None
        key = hashlib.blake2b(np.ascontiguousarray(inputs).data, digest_size=16).digest()
        key += batch.samples.to_bytes(8, "little")
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        states = self.evolve(batch, (0, self.tape.encoding_steps), np.zeros(0, self.dtype))
        with self._lock:
            self._kept[key] = states
            while len(self._kept) > 1 and (
                len(self._kept) > _KEPT_SETS or sum(s.nbytes for s in self._kept.values()) > self._budget // 2
            ):
                self._kept.popitem(last=False)
        return states
