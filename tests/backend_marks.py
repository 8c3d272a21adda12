"""What a backend's drawn values must be near: computed exactly, by other means than the backend's own."""

from __future__ import annotations

import numpy as np
from qiskit.circuit import ClassicalRegister
from qiskit.quantum_info import DensityMatrix, Operator, SuperOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer.noise.device import basic_device_gate_errors, basic_device_readout_errors

from llm_qfl.federation.backend_names import fake_device
from llm_qfl.quantum.exact.engine import ExactEngine
from llm_qfl.quantum.sampled.aer import OPTIMIZATION_LEVEL, TRANSPILER_SEED
from llm_qfl.quantum.sampled.angles import AngleCircuit
from llm_qfl.quantum.sampled.counts import bases
from llm_qfl.quantum.sampled.noise import load_fake_device


def exact_values(circuit, x, weights):
    engine = ExactEngine(
        circuit.circuit,
        list(circuit.observables),
        input_parameters=circuit.input_parameters,
        weight_parameters=circuit.weight_parameters,
    )
    return engine.expectations(x, weights)


def marks(name, circuit, x, weights, isa=None):
    """(N, K) of a backend's name: without noise, or with its device's through the transpiled circuit."""
    device = fake_device(name)
    if device is None:
        return exact_values(circuit, x, weights)
    return noisy_values(load_fake_device(device), circuit, x, weights, isa)


def noisy_values(device, circuit, x, weights, isa=None):
    """Density matrices through the circuit as transpiled for the device (or as given), the whole device's errors."""
    angles = AngleCircuit(circuit)
    (basis,), constant = bases(circuit.observables)
    isa = _transpiled(device, circuit.digest(), basis.measured(angles.circuit)) if isa is None else _measured(isa)
    if device.name not in _ERRORS:
        _ERRORS[device.name] = _Errors(device.target)
    errors = _ERRORS[device.name]
    found = basic_device_readout_errors(target=device.target)
    readout = {tuple(on): np.array(error.probabilities) for on, error in found}
    points = angles.values(x, weights)
    names = [parameter.name for parameter in angles.angles]
    out = []
    for point in points:
        bound = isa.assign_parameters(dict(zip(names, point, strict=True)))
        frequencies = _frequencies(bound, errors, readout)
        outcomes = np.arange(len(frequencies), dtype=np.uint64)
        terms = [frequencies @ (1.0 - 2.0 * (np.bitwise_count(outcomes & mask) % 2)) for mask in basis.masks]
        out.append(basis.coefficients @ np.array(terms) + constant)
    return np.array(out)


_TRANSPILED, _ERRORS = {}, {}  # the whole device's errors take seconds to make


def _transpiled(device, digest, logical):
    if (device.name, digest) not in _TRANSPILED:
        manager = generate_preset_pass_manager(OPTIMIZATION_LEVEL, backend=device, seed_transpiler=TRANSPILER_SEED)
        _TRANSPILED[device.name, digest] = manager.run(logical)
    return _TRANSPILED[device.name, digest]


def _measured(isa):
    """An ISA circuit of IBM's estimator, which measures by itself: logical qubits into the bits of their numbers."""
    places = isa.layout.final_index_layout()
    out = isa.copy()
    bits = ClassicalRegister(len(places), "bits")
    out.add_register(bits)
    for number, place in enumerate(places):
        out.measure(place, bits[number])
    return out


class _Errors:
    """The device's gate errors as superoperators, made when first asked for."""

    def __init__(self, target):
        self._found = {(name, tuple(on)): error for name, on, error in basic_device_gate_errors(target=target)}
        self._made = {}

    def of(self, name, on):
        if (name, on) in self._found and (name, on) not in self._made:
            self._made[name, on] = SuperOp(self._found[name, on])
        return self._made.get((name, on))


def _frequencies(bound, errors, readout):
    """Of the bits 0, 1, ... (bit b has weight 2**b), read-out errors included."""
    steps = [(s.operation, [bound.find_bit(q).index for q in s.qubits], s.clbits) for s in bound.data]
    used = sorted({q for op, on, _ in steps for q in on if op.name != "barrier"})
    state = DensityMatrix.from_int(0, 2 ** len(used))
    measured = {}
    for operation, on, bits in steps:
        if operation.name == "barrier":
            continue
        places = [used.index(q) for q in on]
        if operation.name == "measure":
            measured[bound.find_bit(bits[0]).index] = on[0]
            continue
        state = state.evolve(Operator(operation), places)
        error = errors.of(operation.name, tuple(on))
        state = state if error is None else state.evolve(error, places)
    order = [used.index(measured[bit]) for bit in range(len(measured))]
    probabilities = state.probabilities(order).reshape([2] * len(order))  # the first axis is the last bit
    for bit in range(len(order)):
        axis = len(order) - 1 - bit
        confusion = readout.get((measured[bit],), np.eye(2))  # row: what is, column: what is read
        probabilities = np.moveaxis(np.tensordot(confusion, probabilities, axes=(0, axis)), 0, axis)
    return probabilities.reshape(-1)
