"""`ExactSampler`: Qiskit's sampler primitive (V2) on the exact engine.

A drop-in for `StatevectorSampler`: from the same seed it draws the same shots. All parameter sets that share a circuit
run through one engine in one batch, over all PUBs of a call. Exceptions: `docs/decisions/0003-drop-in.md`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from qiskit.primitives import (
    BaseSamplerV2,
    BitArray,
    DataBin,
    PrimitiveJob,
    PrimitiveResult,
    SamplerPubLike,
    SamplerPubResult,
)
from qiskit.primitives.containers.sampler_pub import SamplerPub

from llm_qfl.quantum.exact.engine_cache import EngineCache, circuit_key
from llm_qfl.quantum.exact.measurement import (
    UNMEASURED,
    Register,
    measured_keys,
    registers,
    without_measurements,
)

FLOAT = NDArray[np.float64]
BYTES = NDArray[np.uint8]
INDEX = NDArray[np.int64]


class ExactSampler(BaseSamplerV2):  # type: ignore[misc]  # qiskit carries no types here
    """Shots from the exact distribution, for any circuit of unitary gates with measurements at its end.

    Args:
        default_shots: shots of a run that names none.
        seed: of the shots. An integer starts the same stream for every parameter set, as in `StatevectorSampler`
            (equal seeds, equal shots); a `Generator` goes on from one to the next.
        dtype: `float64` or `float32`, what the engine computes in.
        memory_budget: bytes that the engine may use; `None`: its default.
    """

    def __init__(
        self,
        *,
        default_shots: int = 1024,
        seed: np.random.Generator | int | None = None,
        dtype: str = "float64",
        memory_budget: int | None = None,
    ) -> None:
        self._default_shots = default_shots
        self._seed = seed
        self._engines = EngineCache(dtype, memory_budget)

    @property
    def default_shots(self) -> int:
        """Shots of a run that names none."""
        return self._default_shots

    @property
    def seed(self) -> np.random.Generator | int | None:
        """Seed or generator of the shots."""
        return self._seed

    def run(
        self, pubs: Iterable[SamplerPubLike], *, shots: int | None = None
    ) -> PrimitiveJob[PrimitiveResult[SamplerPubResult]]:
        """Draw shots.

        Args:
            pubs: `(circuit, parameter values, shots)`, the last two optional.
            shots: for PUBs that name none; `None`: `default_shots`.

        Returns:
            A job whose result holds a `BitArray` for each classical register.

        Raises:
            ValueError: a PUB's parts do not fit together.
            CircuitError: (from the job) a circuit holds more than unitary gates and final measurements.
        """
        coerced = [SamplerPub.coerce(pub, self._default_shots if shots is None else shots) for pub in pubs]
        if any(not pub.circuit.cregs for pub in coerced):
            warnings.warn(
                "One of your circuits has no output classical registers and so the result will be empty. "
                "Did you mean to add measurement instructions?",
                UserWarning,
                stacklevel=2,
            )
        job = PrimitiveJob(self._run, coerced)
        job._submit()
        return job

    def _run(self, pubs: list[SamplerPub]) -> PrimitiveResult[SamplerPubResult]:
        known: dict[int, Hashable] = {}  # by identity: the PUBs hold the circuits for the length of this call
        for pub in pubs:
            if id(pub.circuit) not in known:
                known[id(pub.circuit)] = circuit_key(pub.circuit)
        keys = [known[id(pub.circuit)] for pub in pubs]
        drawn: dict[int, list[BYTES]] = {}
        with self._engines.lock:
            for batch in self._batches(keys):
                drawn |= self._draw(keys[batch[0]], batch, pubs)
        return PrimitiveResult([_result(pub, drawn[at]) for at, pub in enumerate(pubs)], metadata={"version": 2})

    def _batches(self, keys: list[Hashable]) -> list[list[int]]:
        """PUBs that run together: those of one circuit.

        A generator as seed is used in the order of the PUBs, so with one only neighbours run together.
        """
        if isinstance(self._seed, np.random.Generator):
            return [list(batch) for _, batch in groupby(range(len(keys)), key=lambda at: keys[at])]
        together: dict[Hashable, list[int]] = {}
        for at, key in enumerate(keys):
            together.setdefault(key, []).append(at)
        return list(together.values())

    def _draw(self, key: Hashable, batch: list[int], pubs: list[SamplerPub]) -> dict[int, list[BYTES]]:
        """Packed bits of every register for the PUBs of `batch`, which share a circuit."""
        circuit = pubs[batch[0]].circuit
        places = registers(circuit)
        measured = tuple(sorted({q for place in places for q in place.qubits if q != UNMEASURED}))
        rows = [_rows(pubs[at]) for at in batch]
        owner = np.repeat(np.arange(len(batch)), [len(r) for r in rows])
        out = {
            at: [np.zeros((len(r), pubs[at].shots, _num_bytes(place.num_bits)), dtype=np.uint8) for place in places]
            for at, r in zip(batch, rows, strict=True)
        }
        engine = self._engines.get(key, lambda: without_measurements(circuit))
        if not measured or not len(owner):
            return out
        points = np.concatenate(rows)
        first = np.concatenate([np.arange(len(r)) for r in rows])
        step = self._engines.rows_at_once(circuit.num_qubits)
        for start in range(0, len(points), step):
            exact = np.asarray(engine.probabilities(points[start : start + step], np.zeros(0)), dtype=np.float64)
            for i, row in enumerate(_marginal(exact, measured, circuit.num_qubits), start):
                at = batch[owner[i]]
                outcomes = self._shots(row, pubs[at].shots)
                for place, bits in zip(places, out[at], strict=True):
                    bits[first[i]] = _packed(outcomes, place, measured)
        return out

    def _shots(self, probabilities: FLOAT, shots: int) -> INDEX:
        rng = np.random.default_rng(self._seed)
        return rng.choice(len(probabilities), p=probabilities / probabilities.sum(), size=shots)


def _rows(pub: SamplerPub) -> FLOAT:
    points = pub.parameter_values.as_array(pub.circuit.parameters)
    return np.asarray(points, dtype=np.float64).reshape(
        math.prod(pub.parameter_values.shape), pub.circuit.num_parameters
    )


def _num_bytes(num_bits: int) -> int:
    return -(-num_bits // 8)


def _marginal(probabilities: FLOAT, measured: tuple[int, ...], num_qubits: int) -> FLOAT:
    """Distribution of the measured qubits, the lowest one the lowest bit, shape `(N, 2**len(measured))`."""
    if len(measured) == num_qubits:
        return probabilities
    keys = measured_keys(measured, num_qubits)
    out = np.zeros((len(probabilities), 2 ** len(measured)))
    np.add.at(out.T, keys, probabilities.T)
    return out


def _packed(outcomes: INDEX, place: Register, measured: tuple[int, ...]) -> BYTES:
    """Bits of a register as `BitArray` holds them: big-endian bytes, zeros in front, shape `(shots, bytes)`."""
    size = _num_bytes(place.num_bits)
    out = np.zeros((len(outcomes), size), dtype=np.uint8)
    for bit, qubit in enumerate(place.qubits):
        if qubit != UNMEASURED:
            value = (outcomes >> measured.index(qubit) & 1).astype(np.uint8)
            out[:, size - 1 - bit // 8] |= value << np.uint8(bit % 8)
    return out


def _result(pub: SamplerPub, drawn: list[BYTES]) -> SamplerPubResult:
    data = {
        register.name: BitArray(bits.reshape((*pub.shape, *bits.shape[1:])), register.size)
        for register, bits in zip(pub.circuit.cregs, drawn, strict=True)
    }
    return SamplerPubResult(
        DataBin(**data, shape=pub.shape), metadata={"shots": pub.shots, "circuit_metadata": pub.circuit.metadata}
    )
