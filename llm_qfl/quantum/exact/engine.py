"""The exact engine: a batch of samples through one parametrised circuit, with values and all gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.quantum_info import SparsePauliOp

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact import kernels
from llm_qfl.quantum.exact.adjoint import Batch, Sweeper
from llm_qfl.quantum.exact.compile import INPUTS, WEIGHTS, compile_circuit
from llm_qfl.quantum.exact.lanes import LANES
from llm_qfl.quantum.exact.readout import check_classes, read_classes, read_observables
from llm_qfl.quantum.exact.tangent import ClassSums, class_jacobian, class_probabilities
from llm_qfl.quantum.exact.threads import available_threads

FLOAT = NDArray[np.float64]
COMPLEX = NDArray[np.complex128]

DEFAULT_MEMORY_BUDGET = 512 * 1024**2

_BRAS_PER_ANGLE = 8
"""Bras that the adjoint sweep carries in the time that forward mode takes for one angle (measured: 5 to 10)."""


class ExactEngine:
    """Exact values and derivatives of a circuit of unitary gates, for a batch of samples.

    N is the number of samples, D of inputs, P of weights, K of outputs, n of qubits.

    Args:
        circuit: any circuit of unitary gates; barriers and final measurements are tolerated.
        observables: Hermitian operators; their expectations are the outputs. Default: none, states only.
        input_parameters: parameters with a value per sample, in column order.
        weight_parameters: parameters that all samples share, in vector order.
        classes: instead of observables, the output index of each bitstring integer, shape `(2**n,)`; the outputs are
            then the probabilities of the classes.
        num_outputs: number of classes; default: the largest index plus one.
        dtype: `"float64"` or `"float32"` for the amplitudes.
        memory_budget: bytes for workspaces; half as much again at most for kept encoded states.
        threads: most threads of a call; default: `LLM_QFL_THREADS`, else the processors of this process.

    Raises:
        CircuitError: the circuit, an observable or an argument cannot be simulated, or the memory does not suffice.
    """

    def __init__(  # noqa: PLR0913 - one keyword per choice, all with defaults
        self,
        circuit: QuantumCircuit,
        observables: Sequence[SparsePauliOp] | None = None,
        *,
        input_parameters: Sequence[Parameter] = (),
        weight_parameters: Sequence[Parameter] = (),
        classes: NDArray[np.intp] | None = None,
        num_outputs: int | None = None,
        dtype: str = "float64",
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        threads: int | None = None,
    ) -> None:
        if observables is not None and classes is not None:
            raise CircuitError("give observables or classes, not both")
        if dtype not in ("float64", "float32"):
            raise CircuitError(f"dtype must be 'float64' or 'float32', got {dtype!r}")
        if threads is not None and threads < 1:
            raise CircuitError(f"threads must be at least 1, got {threads}")
        check_memory(circuit.num_qubits, dtype, memory_budget)
        self._tape = compile_circuit(circuit, list(input_parameters), list(weight_parameters))
        self._wide: ClassSums | None = None
        count = 0
        if classes is not None:
            table, count = check_classes(classes, num_outputs, circuit.num_qubits)
        bras_cost_more = count > _BRAS_PER_ANGLE * max(1, len(self._tape.gradient_roles))
        if bras_cost_more or count * 2**circuit.num_qubits * 8 > memory_budget // 4:
            self._wide = ClassSums(table, count, self._tape.frame.rows())
            readout = read_observables([], self._tape.frame)
        elif classes is not None:
            readout = read_classes(table, count, self._tape.frame)
        else:
            readout = read_observables(list(observables or ()), self._tape.frame)
        self.num_qubits: int = circuit.num_qubits
        self.num_inputs, self.num_weights = len(input_parameters), len(weight_parameters)
        self.num_outputs = count or len(readout.output_bra)
        self._budget = memory_budget
        self._sweeper = Sweeper(self._tape, readout, dtype, memory_budget, threads or available_threads())

    def expectations(self, inputs: ArrayLike, weights: ArrayLike) -> FLOAT:
        """Outputs, shape `(N, K)`.

        Args:
            inputs: shape `(N, D)`.
            weights: shape `(P,)`.
        """
        x, w = self._checked(inputs, weights)
        if self._wide is not None:
            return self._in_chunks(x, w, 0)[0]
        batch = self._sweeper.prepare(x, w)
        return self._sweeper.sweep(batch, kernels.VALUES, 0, x, _NO_COTANGENT)[0]

    def jacobian(
        self, inputs: ArrayLike, weights: ArrayLike, *, weight_gradient: bool = True, input_gradient: bool = False
    ) -> tuple[FLOAT, FLOAT | None, FLOAT | None]:
        """Outputs `(N, K)`, their derivatives by the weights `(N, K, P)` and by the inputs `(N, K, D)` or None.

        Args:
            inputs: shape `(N, D)`.
            weights: shape `(P,)`.
            weight_gradient: are derivatives by the weights wanted?
            input_gradient: are derivatives by the inputs wanted?
        """
        x, w = self._checked(inputs, weights)
        wanted = WEIGHTS * weight_gradient | INPUTS * input_gradient
        if self._wide is not None:
            return self._in_chunks(x, w, wanted)
        batch = self._sweeper.prepare(x, w, slopes=bool(wanted))
        mode = kernels.JACOBIAN if wanted else kernels.VALUES
        values, columns = self._sweeper.sweep(batch, mode, wanted, x, _NO_COTANGENT)
        by_weights, by_inputs = self._split(columns, batch, wanted)
        return values, by_weights, by_inputs

    def vjp(self, inputs: ArrayLike, weights: ArrayLike, cotangent: ArrayLike) -> tuple[FLOAT, FLOAT]:
        """Outputs `(N, K)` and the weight gradient of `sum(cotangent * outputs)`, shape `(P,)`: one bra in all.

        Args:
            inputs: shape `(N, D)`.
            weights: shape `(P,)`.
            cotangent: shape `(N, K)`.
        """
        x, w = self._checked(inputs, weights)
        bar = np.array(cotangent, dtype=np.float64, order="C")  # a copy: kernels are compiled for writable arrays
        if bar.shape != (len(x), self.num_outputs):
            raise CircuitError(f"cotangent must have shape ({len(x)}, {self.num_outputs}), got {bar.shape}")
        if self._wide is not None or any(f.of_weights for f in self._tape.functions):
            # Functions have slopes per sample, which come before the sum.
            values, jacobian, _ = self.jacobian(x, w)
            assert jacobian is not None
            return values, np.einsum("nk,nkp->p", bar, jacobian)
        batch = self._sweeper.prepare(x, w)
        values, columns = self._sweeper.sweep(batch, kernels.VECTOR, WEIGHTS, x, bar)
        return values, columns[:, 0, : self.num_weights].sum(axis=0)

    def states(self, inputs: ArrayLike, weights: ArrayLike) -> COMPLEX:
        """State vectors in Qiskit's order with the global phase, shape `(N, 2**n)`."""
        x, w = self._checked(inputs, weights)
        amplitudes = self._rows(x, w)
        phase = self._global_phase(x, w)
        return np.asarray((amplitudes[:, 0] + 1j * amplitudes[:, 1]) * np.exp(1j * phase)[:, None])

    def probabilities(self, inputs: ArrayLike, weights: ArrayLike) -> FLOAT:
        """Probabilities of the bitstrings, shape `(N, 2**n)`."""
        x, w = self._checked(inputs, weights)
        return np.asarray(np.square(self._rows(x, w)).sum(axis=1))

    def memory_estimate(self, samples: int) -> int:
        """Bytes that a Jacobian by the weights of `samples` rows takes: workspaces, kept states and the result."""
        sweeper = self._sweeper
        blocks = -(-samples // LANES)
        kept = min(blocks * sweeper.state_bytes, self._budget // 2) if self._tape.encoding_steps else 0
        angles = 3 * self._tape.sample_slots * blocks * LANES * 8
        result = samples * self.num_outputs * (1 + self.num_weights) * 8
        return sweeper.memory(sweeper.threads, sweeper.chunk) + kept + angles + result

    def _in_chunks(self, x: FLOAT, w: FLOAT, wanted: int) -> tuple[FLOAT, FLOAT | None, FLOAT | None]:
        """Values and Jacobians of a read-out with many outputs; states of as many samples at a time as fit."""
        assert self._wide is not None
        sweeper = self._sweeper
        size = LANES * max(1, self._budget // (5 * sweeper.state_bytes))  # two states, their products, and sums
        parts = []
        for start in range(0, max(1, len(x)), size):
            batch = sweeper.prepare(x[start : start + size], w, slopes=bool(wanted))
            if wanted:
                values, columns = class_jacobian(sweeper, batch, self._wide, wanted)
                parts.append((values, *self._split(columns, batch, wanted)))
            else:
                parts.append((class_probabilities(sweeper, batch, self._wide), None, None))
        if len(parts) == 1:
            return parts[0]
        return (
            np.concatenate([part[0] for part in parts]),
            np.concatenate([part[1] for part in parts]) if wanted & WEIGHTS else None,
            np.concatenate([part[2] for part in parts]) if wanted & INPUTS else None,
        )

    def _rows(self, x: FLOAT, w: FLOAT) -> FLOAT:
        """Amplitudes in Qiskit's order, shape `(N, 2, 2**n)`."""
        sweeper = self._sweeper
        need = -(-len(x) // LANES) * sweeper.state_bytes
        if 2 * need > self._budget:
            raise CircuitError(
                f"the states of {len(x)} samples on {self.num_qubits} qubits take 2 x {need:,} bytes, the memory "
                f"budget is {self._budget:,}: ask for fewer samples at a time"
            )
        batch = sweeper.prepare(x, w)
        flat = sweeper.evolve(batch, (0, len(self._tape.steps)), np.zeros(0, sweeper.dtype))
        blocks = flat.reshape(batch.blocks, sweeper.size, 2, LANES)[:, self._tape.frame.rows()]
        rows = blocks.transpose(0, 3, 2, 1).reshape(batch.blocks * LANES, 2, sweeper.size)
        return rows[: len(x)].astype(np.float64, copy=False)

    def _global_phase(self, x: FLOAT, w: FLOAT) -> FLOAT:
        batch = self._sweeper.prepare(x, w)
        known = len(batch.shared)
        total = np.zeros(len(x))
        for polynomial in self._tape.global_phase:
            for (i, j), coefficient in polynomial.items():
                first, second = (
                    batch.shared[v] if v < known else batch.sample[v - known, : len(x)].astype(np.float64)
                    for v in (i, j)
                )
                total += coefficient * first * second
        return total

    def _split(self, columns: FLOAT, batch: Batch, wanted: int) -> tuple[FLOAT | None, FLOAT | None]:
        """Columns of weights and inputs; those of functions are carried on to their arguments."""
        at = 0
        parts: list[FLOAT | None] = [None, None]
        for position, (role, width) in enumerate(((WEIGHTS, self.num_weights), (INPUTS, self.num_inputs))):
            if wanted & role:
                parts[position] = columns[..., at : at + width] if self._tape.functions or wanted == 3 else columns
                at += width
        if not wanted:
            return None, None
        for i, derivatives in batch.slopes:
            for (is_input, position), slope in zip(self._tape.functions[i].arguments, derivatives, strict=True):
                target = parts[is_input]
                if target is not None:
                    target[..., position] += columns[..., at + i] * np.broadcast_to(slope, len(columns))[:, None]
        return tuple(None if p is None else np.ascontiguousarray(p) for p in parts)  # type: ignore[return-value]

    def _checked(self, inputs: ArrayLike, weights: ArrayLike) -> tuple[FLOAT, FLOAT]:
        x = np.ascontiguousarray(inputs, dtype=np.float64)
        w = np.ascontiguousarray(weights, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.num_inputs:
            raise CircuitError(f"inputs must have shape (samples, {self.num_inputs}), got {x.shape}")
        if w.shape != (self.num_weights,):
            raise CircuitError(f"weights must have shape ({self.num_weights},), got {w.shape}")
        return x, w


_NO_COTANGENT = np.zeros((0, 0))


def check_memory(num_qubits: int, dtype: str, memory_budget: int) -> None:
    """Refuse a circuit whose states cannot fit, before anything is allocated.

    Raises:
        CircuitError: with the sum.
    """
    size = 8 if dtype == "float64" else 4
    need = 3 * LANES * 2 * size * 2**num_qubits
    if need > memory_budget:
        raise CircuitError(
            f"{num_qubits} qubits are too many for the memory budget: a ket and two bras x {LANES} samples x "
            f"2**{num_qubits} amplitudes x {2 * size} bytes = {need:,} bytes; the budget is {memory_budget:,}. "
            "Use fewer qubits, float32 or a larger memory_budget"
        )
