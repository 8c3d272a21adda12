"""One transpiled circuit at many points: outcomes of shots, with or without noise.

Three ways, of one law, by what is quickest for this circuit and these shots:

- the distribution: Aer computes it (a state vector, or a density matrix with every error of the noise model), read-out
  errors act on it, and the shots are drawn from it, at a cost that does not grow with them;
- our trajectories: state vectors that most shots share (`trajectories.py`);
- Aer's trajectories, a state vector for every shot, for noisy circuits that neither of the others can take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from qiskit.circuit import QuantumCircuit

from llm_qfl.federation.errors import BackendError
from llm_qfl.federation.types import Array
from llm_qfl.quantum.sampled.counts import Counts
from llm_qfl.quantum.sampled.trajectories import Trajectories, UnsupportedCircuitError

Way = Literal["distribution", "trajectories", "aer"]

SECONDS_PER_AMPLITUDE, SECONDS_PER_GATE = 4e-9, 5e-6  # of one gate on a state or density matrix, one core
SECONDS_PER_SHOT, SECONDS_PER_SHOT_AMPLITUDE = 1.5e-6, 1e-9  # of one gate of a trajectory of Aer's
SECONDS_PER_ITEM, SECONDS_PER_ITEM_AMPLITUDE = 3e-8, 5e-10  # of one fused gate of a trajectory of ours
LONGEST_CALL, LONGEST_POINT = 4.0, 30.0
"""Seconds. Aer holds Python's global lock while it runs, and a Flower node that is silent for a minute is given up."""
WIDEST = 14
"""Qubits up to which a distribution is kept as an array."""
AER_SEED_STEP = 2113
"""Aer adds this to the seed from one circuit of a call to the next: cutting a call in two changes no number."""


@dataclass(frozen=True, eq=False)
class Noise:
    """Errors of the qubits of one circuit.

    Attributes:
        model: Aer's noise model.
        gates: (gate, qubits) -> the error after it, as the model has it.
        readout: bit -> (2, 2), row: what is, column: what is read.
    """

    model: Any
    gates: Mapping[tuple[str, tuple[int, ...]], Any]
    readout: dict[int, Array]


class Simulation:
    """A circuit that ends in measurements of all its bits.

    Args:
        circuit: over its own qubits only, angles sorted by name.
        noise: of these qubits, or None.
    """

    def __init__(self, circuit: QuantumCircuit, noise: Noise | None) -> None:
        self.circuit, self._noise = circuit, noise
        self.qubits = measured_qubits(circuit)
        self._gates = len(circuit.data)
        bare: QuantumCircuit = circuit.copy_empty_like()
        for step in circuit.data:
            if step.operation.name not in ("measure", "barrier"):
                bare.append(step.operation, step.qubits, step.clbits)
        self._bare = bare
        self._trajectories = None if noise is None or len(self.qubits) > WIDEST else _trajectories(circuit, noise)

    def seconds(self, shots: int) -> tuple[float, Way]:
        """About how long a point takes, and which way it goes. From circuit and noise alone: equal everywhere."""
        width = self.circuit.num_qubits
        amplitudes = float((2 if self._noise is None else 4) ** width)
        ways: dict[Way, float] = {}
        if len(self.qubits) <= WIDEST and (self._noise is not None or width <= WIDEST):
            ways["distribution"] = self._gates * (SECONDS_PER_GATE + SECONDS_PER_AMPLITUDE * amplitudes)
        if self._trajectories is not None:
            own = 1 + shots * self._trajectories.disturbed / 2  # an error is halfway through on the average
            item = SECONDS_PER_ITEM + SECONDS_PER_ITEM_AMPLITUDE * 2.0**width
            ways["trajectories"] = own * self._trajectories.items * item
        if not ways or self._noise is not None:
            each = SECONDS_PER_SHOT + SECONDS_PER_SHOT_AMPLITUDE * 2.0**width
            ways["aer"] = (1 if self._noise is None else shots) * self._gates * each
        way = min(ways, key=lambda name: ways[name])
        return ways[way], way

    def check(self, name: str, shots: int) -> None:
        """Refuse a circuit of which one point takes too long.

        Raises:
            BackendError: with what to do.
        """
        seconds, _ = self.seconds(shots)
        if seconds > LONGEST_POINT:
            raise BackendError(
                f"quantum.backend {name}: {self.circuit.num_qubits} qubits take about {seconds:.0f} s a circuit here, "
                f"expected at most {LONGEST_POINT:.0f}; lower quantum.qubits or quantum.layers"
            )

    def frequencies(self, points: Array, shots: int, seed: int) -> Array | list[Counts]:
        """Outcomes of the shots at each point.

        Args:
            points: (M, A).
            shots: of each point.
            seed: 31 bits.

        Returns:
            Counts (M, 2^n), or for wide circuits a mapping for each point.
        """
        seconds, way = self.seconds(shots)
        chunk = max(1, min(int(LONGEST_CALL / seconds), 2**22 // 2 ** min(len(self.qubits), WIDEST)))
        if way == "aer":
            return self._drawn_by_aer(points, shots, seed, chunk)
        rng = np.random.default_rng(seed)
        if way == "trajectories" and self._trajectories is not None:
            return self._trajectories.counts(points, shots, rng.integers(2**32, size=len(points)))
        return np.concatenate([rng.multinomial(shots, part) for part in self._distributions(points, chunk)])

    def _distributions(self, points: Array, chunk: int) -> Iterator[Array]:
        """(<= chunk, 2^n) probabilities of what is read."""
        circuit = self._bare.copy()
        circuit.save_probabilities(list(self.qubits))
        simulator = _simulator("statevector" if self._noise is None else "density_matrix", self._noise)
        for part, result in _in_parts(simulator, circuit, points, chunk, shots=1, seed=0):
            found = np.stack([np.asarray(one.data.probabilities, np.float64) for one in result.results])
            yield _normalised(self._read(found.reshape(len(part), -1)))

    def _read(self, probabilities: Array) -> Array:
        """Read-out errors, bit by bit."""
        if self._noise is None:
            return probabilities
        width = len(self.qubits)
        table = probabilities.reshape(-1, *[2] * width)  # axis 1 is the last bit
        for bit, confusion in self._noise.readout.items():
            axis = width - bit
            table = np.moveaxis(np.tensordot(confusion, table, axes=(0, axis)), 0, axis)
        return table.reshape(probabilities.shape)

    def _drawn_by_aer(self, points: Array, shots: int, seed: int, chunk: int) -> list[Counts]:
        simulator = _simulator("statevector", self._noise)
        counts: list[Counts] = []
        for _, result in _in_parts(simulator, self.circuit, points, chunk, shots=shots, seed=seed):
            counts += [{int(key, 16): value for key, value in one.data.counts.items()} for one in result.results]
        return counts


def _trajectories(circuit: QuantumCircuit, noise: Noise) -> Trajectories | None:
    """None for a circuit that they do not know how to run; Aer then does."""
    try:
        return Trajectories(circuit, noise.gates, noise.readout)
    except UnsupportedCircuitError:
        return None


def measured_qubits(circuit: QuantumCircuit) -> tuple[int, ...]:
    """The qubit that is measured into bit 0, 1, ..."""
    into = {
        circuit.find_bit(step.clbits[0]).index: circuit.find_bit(step.qubits[0]).index
        for step in circuit.data
        if step.operation.name == "measure"
    }
    return tuple(into[bit] for bit in range(len(into)))


def _simulator(method: str, noise: Noise | None) -> Any:  # noqa: ANN401
    from qiskit_aer import AerSimulator

    model = None if noise is None else noise.model
    simulator = AerSimulator(method=method, noise_model=model)
    simulator.set_options(runtime_parameter_bind_enable=True, max_parallel_experiments=0)
    return simulator


def _in_parts(
    simulator: Any,  # noqa: ANN401
    circuit: QuantumCircuit,
    points: Array,
    chunk: int,
    *,
    shots: int,
    seed: int,
) -> Iterator[tuple[Array, Any]]:
    parameters = list(circuit.parameters)  # by name, which is by number
    for start in range(0, len(points), chunk):
        part = points[start : start + chunk]
        binds = [{parameter: part[:, i].tolist() for i, parameter in enumerate(parameters)}]
        job = simulator.run(circuit, parameter_binds=binds, shots=shots, seed_simulator=seed + AER_SEED_STEP * start)
        result = job.result()
        if not result.success:
            raise BackendError(f"Aer: {result.status}")
        yield part, result


def _normalised(probabilities: Array) -> Array:
    """Rounding leaves a sum a hair off one, or an entry below zero, which a multinomial does not take."""
    clipped = np.clip(probabilities, 0.0, None)
    return np.asarray(clipped / clipped.sum(axis=1, keepdims=True))
