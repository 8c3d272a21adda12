"""Shots of a wide noisy circuit as state vectors of which most are shared.

Every error channel E of the noise model is split into E = p Id + (1 - p) R with the largest p for which R is a channel
still: p = 1 / <Omega| C(E)^+ |Omega> with Choi matrix C(E) and |Omega> = sum_i |ii>, where |Omega> lies in its range.
Then whether anything happens at a gate does not depend on the state, as it does with the channel's Kraus operators.
On a device with errors of .3% a gate, a shot of a hundred gates mostly has none: all these shots are one state vector,
and the others start from it at their first error. The law is that of a state vector for each shot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import QuantumCircuit
from qiskit.quantum_info import Choi, Operator

from llm_qfl.federation.types import Array
from llm_qfl.quantum.exact.threads import available_threads, run_shares
from llm_qfl.quantum.exact.trajectories import BLOCK, CZ, PAIR, trajectories

Complexes = NDArray[np.complex128]
TURNED = "rz"
"""The gate that may have a parameter."""


class UnsupportedCircuitError(Exception):
    """Not a circuit for this module; the caller has another way."""


@dataclass(frozen=True, eq=False)
class Split:
    """A channel as a mixture: with `quiet` nothing happens, else one of `krauses` (K, d, d), a channel themselves."""

    quiet: float
    krauses: Complexes


def split_channel(channel: Any) -> Split:  # noqa: ANN401
    """The mixture of a channel on one or two qubits; see the module."""
    choi = np.asarray(Choi(channel).data)
    side = int(np.sqrt(len(choi)))
    omega = np.eye(side).reshape(-1)
    values, vectors = np.linalg.eigh(choi)
    kept = values > 1e-12
    overlaps = vectors[:, kept].conj().T @ omega
    inside = np.linalg.norm(overlaps) ** 2 > side * (1 - 1e-9)
    quiet = 1 / float((np.abs(overlaps) ** 2 / values[kept]).sum()) if inside else 0.0
    quiet = min(quiet, 1.0)
    rest = choi - quiet * np.outer(omega, omega)
    values, vectors = np.linalg.eigh(rest / max(1 - quiet, 1e-15))
    order = [k for k in np.argsort(-values) if values[k] > 1e-12]
    krauses = [np.sqrt(values[k]) * vectors[:, k].reshape(side, side).T for k in order]
    return Split(quiet, np.array(krauses, np.complex128).reshape(-1, side, side))


@dataclass(eq=False)
class _Tables:
    """What becomes the kernel's arrays."""

    kinds: list[int] = field(default_factory=list)
    strides: list[tuple[int, int]] = field(default_factory=list)
    items: list[tuple[int, int]] = field(default_factory=list)
    pairs: list[Complexes] = field(default_factory=list)
    item_sites: list[tuple[int, int]] = field(default_factory=list)
    gates: list[tuple[int, int, int]] = field(default_factory=list)
    fixed: list[Complexes] = field(default_factory=list)
    turns: list[Any] = field(default_factory=list)
    site_strides: list[tuple[int, int]] = field(default_factory=list)
    site_krauses: list[tuple[int, int]] = field(default_factory=list)
    krauses: list[Complexes] = field(default_factory=list)
    survival: list[float] = field(default_factory=lambda: [1.0])


class Trajectories:
    """A circuit that ends in measurements, under a noise model.

    Args:
        circuit: in the device's gates, over its own qubits only.
        errors: (gate, qubits) -> error after it, as Aer's `QuantumError`.
        readout: bit -> (2, 2), row: what is, column: what is read.

    Raises:
        UnsupportedCircuitError: a gate on three qubits, or a parameter elsewhere than in rz.
    """

    def __init__(
        self, circuit: QuantumCircuit, errors: Mapping[tuple[str, tuple[int, ...]], Any], readout: dict[int, Array]
    ) -> None:
        self.qubits = circuit.num_qubits
        self._tables, self._errors = _Tables(), errors
        self._splits: dict[tuple[str, tuple[int, ...]], Split] = {}
        self._open: dict[int, list[tuple[int, int, Split | None]]] = {}
        reads: dict[int, int] = {}
        for step in circuit.data:
            qubits = tuple(circuit.find_bit(bit).index for bit in step.qubits)
            if step.operation.name == "barrier":
                continue
            if step.operation.name == "measure":
                reads[circuit.find_bit(step.clbits[0]).index] = qubits[0]
            else:
                self._add(step.operation, qubits)
        for qubit in sorted(self._open):
            self._close(qubit)
        self._reads = np.array([reads[bit] for bit in range(len(reads))], np.int64)
        self._flips = np.zeros((len(reads), 2))
        for bit, confusion in readout.items():
            self._flips[bit] = confusion[0, 1], confusion[1, 0]
        self._arrays = self._packed()
        self._base, self._slopes = _linear(self._tables.turns, list(circuit.parameters))

    @property
    def disturbed(self) -> float:
        """Share of the shots with an error."""
        return 1.0 - self._tables.survival[-1]

    @property
    def items(self) -> int:
        """What a state vector goes through: fused blocks of one qubit, gates of two."""
        return len(self._tables.kinds)

    def counts(self, points: Array, shots: int, seeds: np.ndarray) -> Array:
        """(M, 2^bits) counts at points (M, A), each with its seed (M,) of 32 bits."""
        turns = self._base + points @ self._slopes.T
        out = np.zeros((len(points), 2 ** len(self._reads)), np.int64)

        def share(first: int, last: int) -> None:
            part = slice(first, last)
            trajectories(
                turns[part], seeds[part], shots, self.qubits, *self._arrays, self._reads, self._flips, out[part]
            )

        run_shares(share, len(points), available_threads())
        return out.astype(np.float64)

    def _add(self, gate: Any, qubits: tuple[int, ...]) -> None:  # noqa: ANN401
        tables, split = self._tables, self._split((gate.name, qubits))
        if gate.num_qubits == 1:
            if gate.params and gate.is_parameterized():
                if gate.name != TURNED:
                    raise UnsupportedCircuitError(f"a parameter in {gate.name!r}")
                tables.turns.append(gate.params[0])
                what = (len(tables.turns) - 1, -1)
            else:
                tables.fixed.append(np.asarray(Operator(gate).data, np.complex128))
                what = (-1, len(tables.fixed) - 1)
            self._open.setdefault(qubits[0], []).append((*what, split))
            return
        if gate.num_qubits != 2 or gate.is_parameterized():
            raise UnsupportedCircuitError(f"{gate.name!r} on {gate.num_qubits} qubits")
        for qubit in qubits:
            self._close(qubit)
        matrix = np.asarray(Operator(gate).data, np.complex128)
        first = len(tables.site_strides)
        if split is not None and split.quiet < 1.0:
            self._site(qubits, split)
        is_cz = np.allclose(matrix, np.diag([1, 1, 1, -1]))
        self._item(CZ if is_cz else PAIR, (2 ** qubits[0], 2 ** qubits[1]), (0, 0), matrix, first)

    def _split(self, key: tuple[str, tuple[int, ...]]) -> Split | None:
        if key not in self._splits and key in self._errors:
            self._splits[key] = split_channel(self._errors[key])
        return self._splits.get(key)

    def _close(self, qubit: int) -> None:
        """The block of a qubit is full: what follows acts on two."""
        tables, block = self._tables, self._open.pop(qubit, [])
        if not block:
            return
        start, first = len(tables.gates), len(tables.site_strides)
        for turn, fixed, split in block:
            noisy = split is not None and split.quiet < 1.0
            tables.gates.append((turn, fixed, len(tables.site_strides) if noisy else -1))
            if noisy and split is not None:
                self._site((qubit,), split)
        self._item(BLOCK, (2**qubit, 0), (start, len(tables.gates)), np.zeros((4, 4), np.complex128), first)

    def _item(
        self, kind: int, strides: tuple[int, int], gates: tuple[int, int], pair: Complexes, first_site: int
    ) -> None:
        tables = self._tables
        tables.kinds.append(kind)
        tables.strides.append(strides)
        tables.items.append(gates)
        tables.pairs.append(pair)
        tables.item_sites.append((first_site, len(tables.site_strides)))

    def _site(self, qubits: tuple[int, ...], split: Split) -> None:
        tables = self._tables
        tables.site_strides.append((2 ** qubits[0], 2 ** qubits[1] if len(qubits) == 2 else 0))
        start = len(tables.krauses)
        for kraus in split.krauses:
            padded = np.zeros((4, 4), np.complex128)
            padded[: len(kraus), : len(kraus)] = kraus
            tables.krauses.append(padded)
        tables.site_krauses.append((start, len(tables.krauses)))
        tables.survival.append(tables.survival[-1] * split.quiet)

    def _packed(self) -> tuple[np.ndarray, ...]:
        t = self._tables
        return (
            np.array(t.kinds, np.int64),
            np.array(t.strides, np.int64).reshape(-1, 2),
            np.array(t.items, np.int64).reshape(-1, 2),
            np.array(t.gates, np.int64).reshape(-1, 3),
            np.array(t.fixed, np.complex128).reshape(-1, 2, 2),
            np.array(t.pairs, np.complex128).reshape(-1, 4, 4),
            np.array(t.item_sites, np.int64).reshape(-1, 2),
            np.array(t.site_strides, np.int64).reshape(-1, 2),
            np.array(t.site_krauses, np.int64).reshape(-1, 2),
            np.array(t.krauses, np.complex128).reshape(-1, 4, 4),
            np.array(t.survival),
        )


def _linear(expressions: list[Any], parameters: list[Any]) -> tuple[Array, Array]:
    """Base (R,) and slopes (R, A) of angles that are sums of multiples of the parameters, as transpiling leaves them.

    Raises:
        UnsupportedCircuitError: one is no such sum.
    """

    def at(values: Array) -> Array:
        known = dict(zip(parameters, values, strict=True))
        return np.array([float(e.bind({p: known[p] for p in e.parameters})) for e in expressions])

    count = len(parameters)
    base = at(np.zeros(count))
    slopes = np.stack([at(row) - base for row in np.eye(count)], axis=1) if count else np.zeros((len(base), 0))
    probe = np.random.default_rng(0).normal(size=count)
    if not np.allclose(at(probe), base + slopes @ probe, atol=1e-9):
        raise UnsupportedCircuitError("an angle that is no sum of multiples of the parameters")
    return base, slopes
