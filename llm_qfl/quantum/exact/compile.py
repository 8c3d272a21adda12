"""Circuit -> tape: the flat integer and float tables that the kernels interpret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Parameter, QuantumCircuit

from llm_qfl.federation.errors import CircuitError
from llm_qfl.quantum.exact.expressions import ONE, ExpressionTable, Function, Polynomial
from llm_qfl.quantum.exact.frame import Frame, null_space, span
from llm_qfl.quantum.exact.gates import Reader
from llm_qfl.quantum.exact.schedule import Fixed, Group, Layer, Phase, Rotation, Schedule, Y

INT = NDArray[np.int64]
FLOAT = NDArray[np.float64]

PASS_QUBITS = 6
"""Virtual qubits of one pass: 2**6 rows of ket and bra, eight samples each, fit a first-level cache."""

COMPLEX, REAL_ROTATION, REAL_REFLECTION = 0, 1, 2
PASS, PHASES = 0, 1
FIXED = 3
WEIGHTS, INPUTS = 1, 2
NO_SLOT = -1


@dataclass(frozen=True)
class Tape:
    """What the kernels read. Columns of each table are listed at its field."""

    num_qubits: int
    num_inputs: int
    num_weights: int
    frame: Frame
    functions: tuple[Function, ...]
    steps: INT
    """(step, 8): kind, layer, then PASS: bits, first group, groups, local offset, coset offset, cosets;
    PHASES: first term, terms, shared table or -1."""
    groups: INT
    """(group, 8): kind, per sample?, coefficient, first factor, factors, then what a gradient by weights (1), by
    inputs (2) and by both (3) needs: 0 nothing, 1 the y component, 2 all."""
    factors: INT
    """(factor, 4): axis (3: fixed), per sample?, slot (or row of `fixed`), gradient slot or -1."""
    fixed: FLOAT
    """(fixed, 13): quaternion and the 3x3 matrix that carries the components back through it."""
    terms: INT
    """(term, 4): z mask, per sample?, slot, gradient slot or -1."""
    rows: INT
    """Row offsets of the passes."""
    monomials: INT
    """(monomial, 4): per sample?, slot, first value, second value: angle = sum of coefficient * first * second."""
    coefficients: FLOAT
    derivatives: INT
    """(entry, 3): gradient slot, column, value: d/d column += coefficient * value * d/d angle. Columns are weights,
    inputs, functions."""
    slopes: FLOAT
    gradient_roles: INT
    """(gradient slot,): 1 depends on weights, 2 on inputs, 3 on both."""
    first_step: INT
    """(4,) by what is wanted: the layer at which the backward sweep ends (number of layers: nothing to do)."""
    encoding_steps: int
    """Steps before the first weight."""
    num_layers: int
    shared_slots: int
    sample_slots: int
    shared_groups: int
    sample_groups: int
    shared_tables: int
    global_phase: list[Polynomial]

    @property
    def num_shared_values(self) -> int:
        """Length of `[1, weights, shared functions]`."""
        return 1 + self.num_weights + sum(not f.per_sample for f in self.functions)

    @property
    def num_columns(self) -> int:
        """Weights, inputs and functions."""
        return self.num_weights + self.num_inputs + len(self.functions)


def compile_circuit(circuit: QuantumCircuit, inputs: Sequence[Parameter], weights: Sequence[Parameter]) -> Tape:
    """Compile a circuit of unitary gates.

    Args:
        circuit: any circuit of unitary gates; barriers and final measurements are tolerated.
        inputs: parameters whose value differs from sample to sample.
        weights: parameters that all samples share.

    Raises:
        CircuitError: an instruction is no unitary gate, or a parameter has no role.
    """
    if circuit.num_qubits < 1:
        raise CircuitError("the circuit has no qubits: expected at least one")
    table = ExpressionTable(inputs, weights)
    weighted: set[int] = set()
    schedule = Schedule(circuit.num_qubits, len(weights), weighted)
    reader = Reader(table, schedule, weighted)
    reader.read(circuit)
    return _Writer(circuit.num_qubits, table, schedule, weighted).write(reader.global_phase)


class _Writer:
    def __init__(self, num_qubits: int, table: ExpressionTable, schedule: Schedule, weighted: set[int]) -> None:
        self._n, self._table, self._schedule, self._weighted = num_qubits, table, schedule, weighted
        self._place = self._final_indices()
        self._steps: list[list[int]] = []
        self._groups: list[list[int]] = []
        self._factors: list[list[int]] = []
        self._fixed: list[FLOAT] = []
        self._terms: list[list[int]] = []
        self._rows: list[INT] = []
        self._row_count = 0
        self._monomials: list[tuple[list[int], float]] = []
        self._derivatives: list[tuple[list[int], float]] = []
        self._roles: list[int] = []
        self._slots = [0, 0]
        self._coefficients = [0, 0]
        self._tables = 0
        self._dropped_phase = 0.0

    def write(self, global_phase: list[Polynomial]) -> Tape:
        layers = self._schedule.layers
        encoding = next((i for i, layer in enumerate(layers) if layer.weighted), len(layers))
        first = [len(layers)] * 4
        encoding_steps = 0
        for number, layer in enumerate(layers):
            if number == encoding:
                encoding_steps = len(self._steps)
            slots = len(self._roles)
            self._layer(number, layer)
            roles = np.bitwise_or.reduce(self._roles[slots:]) if len(self._roles) > slots else 0
            for mode in (1, 2, 3):
                if roles & mode:
                    first[mode] = min(first[mode], number)
        if encoding == len(layers):
            encoding_steps = len(self._steps)
        return Tape(
            num_qubits=self._n,
            num_inputs=self._table.num_inputs,
            num_weights=self._table.num_weights,
            frame=self._schedule.frame,
            functions=tuple(self._table.functions),
            steps=_table(self._steps, 8),
            groups=_table(self._groups, 8),
            factors=_table(self._factors, 4),
            fixed=np.array(self._fixed, dtype=np.float64).reshape(-1, 13),
            terms=_table(self._terms, 4),
            rows=np.concatenate(self._rows) if self._rows else np.zeros(1, dtype=np.int64),
            monomials=_table([m for m, _ in self._monomials], 4),
            coefficients=np.array([c for _, c in self._monomials], dtype=np.float64),
            derivatives=_table([d for d, _ in self._derivatives], 3),
            slopes=np.array([s for _, s in self._derivatives], dtype=np.float64),
            gradient_roles=np.array(self._roles, dtype=np.int64),
            first_step=np.array(first, dtype=np.int64),
            encoding_steps=encoding_steps,
            num_layers=len(layers),
            shared_slots=self._slots[0],
            sample_slots=self._slots[1],
            shared_groups=self._coefficients[0],
            sample_groups=self._coefficients[1],
            shared_tables=self._tables,
            global_phase=[{self._monomial(m): c for m, c in p.items()} for p in global_phase]
            + [{(ONE, ONE): self._dropped_phase}],
        )

    def _final_indices(self) -> list[int]:
        """Provisional value index -> final one: shared functions move in front of the inputs."""
        start = 1 + self._table.num_weights
        functions = self._table.functions
        place = list(range(start + self._table.num_inputs + len(functions)))
        shared = sum(not f.per_sample for f in functions)
        for i in range(self._table.num_inputs):
            place[start + i] += shared
        counts = [0, 0]
        for i, function in enumerate(functions):
            at = start + counts[0] if not function.per_sample else start + shared + self._table.num_inputs + counts[1]
            place[start + self._table.num_inputs + i] = at
            counts[function.per_sample] += 1
        return place

    def _monomial(self, monomial: tuple[int, int]) -> tuple[int, int]:
        return self._place[monomial[0]], self._place[monomial[1]]

    def _role(self, value: int) -> int:
        """Which of weights (1) and inputs (2) a provisional value depends on."""
        first_input = 1 + self._table.num_weights
        if value == 0:
            return 0
        if value < first_input:
            return WEIGHTS
        if value < first_input + self._table.num_inputs:
            return INPUTS
        function = self._table.functions[value - first_input - self._table.num_inputs]
        return WEIGHTS * function.of_weights | INPUTS * function.per_sample

    def _slot(self, angle: Polynomial) -> tuple[int, int, int]:
        """Register an angle: (per sample?, slot, gradient slot or -1)."""
        role = 0
        for key, coefficient in angle.items():
            if coefficient:
                role |= self._role(key[0]) | self._role(key[1])
        lane = int(bool(role & INPUTS))
        slot = self._slots[lane]
        self._slots[lane] += 1
        gradient = NO_SLOT
        if role:
            gradient = len(self._roles)
            self._roles.append(role)
        for key, coefficient in angle.items():
            if not coefficient:
                continue
            first, second = self._monomial(key)
            self._monomials.append(([lane, slot, first, second], coefficient))
            for by, other in ((key[0], second), (key[1], first)):
                if by:
                    self._derivatives.append(([gradient, by - 1, other], coefficient))
        return lane, slot, gradient

    def _layer(self, number: int, layer: Layer) -> None:
        if layer.groups:
            count = -(-len(layer.groups) // min(PASS_QUBITS, self._n))
            size = -(-len(layer.groups) // count)
            for start in range(0, len(layer.groups), size):
                self._pass(number, layer.groups[start : start + size])
        if layer.phases:
            self._phases(number, layer.phases)

    def _pass(self, number: int, groups: list[Group]) -> None:
        """Local bit j is the bit of group j; fillers make the inner loops long."""
        free = null_space([g.z for g in groups], self._n)
        bits = min(self._n, PASS_QUBITS)
        fillers = bits - len(groups)
        local, cosets = span([g.x for g in groups] + free[:fillers]), span(free[fillers:])
        step = [PASS, number, bits, len(self._groups), len(groups), self._row_count, self._row_count + len(local)]
        self._steps.append([*step, len(cosets)])
        self._rows += [local, cosets]
        self._row_count += len(local) + len(cosets)
        for group in groups:
            self._group(group)

    def _group(self, group: Group) -> None:
        first = len(self._factors)
        for factor in group.factors:
            if isinstance(factor, Fixed):
                self._factors.append([FIXED, 0, len(self._fixed), NO_SLOT])
                self._fixed.append(np.concatenate([factor.quaternion, _carried_back(factor.quaternion).ravel()]))
            else:
                self._factors.append([factor.axis, *self._slot(factor.angle)])
        lane = int(any(f[0] != FIXED and f[1] for f in self._factors[first:]))
        coefficient = self._coefficients[lane]
        self._coefficients[lane] += 1
        needs = [self._needs(first, mode) for mode in (WEIGHTS, INPUTS, WEIGHTS | INPUTS)]
        kind = _kind(group)
        if kind == REAL_REFLECTION:
            self._dropped_phase -= pi / 2  # the kernel applies q1 X + q3 Z without its -i
        head = [kind, lane, coefficient, first, len(group.factors)]
        self._groups.append(head + needs)

    def _needs(self, first: int, mode: int) -> int:
        wanted = [i for i in range(first, len(self._factors)) if self._wanted(self._factors[i][3], mode)]
        if not wanted:
            return 0
        only_y = all(f[0] == Y for f in self._factors[wanted[0] :])
        return 1 if only_y else 2

    def _wanted(self, gradient: int, mode: int) -> bool:
        return gradient != NO_SLOT and bool(self._roles[gradient] & mode)

    def _phases(self, number: int, phases: list[Phase]) -> None:
        first = len(self._terms)
        for phase in phases:
            self._terms.append([phase.z, *self._slot(phase.angle)])
        shared = NO_SLOT
        if any(not term[1] for term in self._terms[first:]):
            shared = self._tables
            self._tables += 1
        self._steps.append([PHASES, number, first, len(phases), shared, 0, 0, 0])


def _kind(group: Group) -> int:
    """Real groups act on real and imaginary parts alike, with half the work."""
    reflections = 0
    for factor in group.factors:
        if isinstance(factor, Rotation):
            if factor.axis != Y:
                return COMPLEX
            continue
        q = factor.quaternion
        if q[1] or q[3]:
            if q[0] or q[2]:
                return COMPLEX
            reflections += 1
    return REAL_REFLECTION if reflections % 2 else REAL_ROTATION


def _carried_back(q: FLOAT) -> FLOAT:
    """M with v_before = M v_after for v_i = Im <bra|sigma_i|ket>, both states before or after the gate."""
    sigma = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
    u = q[0] * np.eye(2) - 1j * np.einsum("a,aij->ij", q[1:], sigma)
    rotated = np.einsum("ij,ajk,lk->ail", u, sigma, u.conj())
    return np.asarray(np.einsum("aij,bji->ab", rotated, sigma).real / 2)


def _table(rows: Sequence[Sequence[int]], columns: int) -> INT:
    return np.array(rows, dtype=np.int64).reshape(-1, columns)
