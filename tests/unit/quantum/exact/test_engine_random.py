"""Random circuits against Qiskit's Statevector and closed-form derivative rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.circuit import ParameterVector, QuantumCircuit
from qiskit.circuit.library import (
    C3XGate,
    CCXGate,
    CCZGate,
    CHGate,
    CPhaseGate,
    CRXGate,
    CRYGate,
    CRZGate,
    CSwapGate,
    CSXGate,
    CUGate,
    CXGate,
    CYGate,
    CZGate,
    DCXGate,
    ECRGate,
    HGate,
    PhaseGate,
    RGate,
    RXGate,
    RXXGate,
    RYGate,
    RYYGate,
    RZGate,
    RZXGate,
    RZZGate,
    SdgGate,
    SGate,
    SwapGate,
    SXdgGate,
    SXGate,
    TdgGate,
    TGate,
    U1Gate,
    U2Gate,
    U3Gate,
    UGate,
    UnitaryGate,
    XGate,
    XXMinusYYGate,
    YGate,
    ZGate,
    iSwapGate,
)
from qiskit.quantum_info import SparsePauliOp, Statevector, random_unitary

from llm_qfl.quantum.exact.engine import ExactEngine

FIXED = {
    1: [HGate, XGate, YGate, ZGate, SGate, SdgGate, TGate, TdgGate, SXGate, SXdgGate],
    2: [CXGate, CZGate, CYGate, CHGate, SwapGate, iSwapGate, DCXGate, ECRGate, CSXGate],
    3: [CCXGate, CCZGate, CSwapGate],
    4: [C3XGate],
}
TURNED = {
    1: [
        (RXGate, 1),
        (RYGate, 1),
        (RZGate, 1),
        (PhaseGate, 1),
        (U1Gate, 1),
        (U2Gate, 2),
        (U3Gate, 3),
        (UGate, 3),
        (RGate, 2),
    ],
    2: [
        (RXXGate, 1),
        (RYYGate, 1),
        (RZZGate, 1),
        (RZXGate, 1),
        (CRXGate, 1),
        (CRYGate, 1),
        (CRZGate, 1),
        (CPhaseGate, 1),
        (CUGate, 4),
        (XXMinusYYGate, 2),
    ],
}


def _expression(draw, x, w):
    a, b = draw(st.sampled_from([*x, *w])), draw(st.sampled_from([*x, *w]))
    number = draw(st.floats(-2, 2).filter(lambda v: abs(v) > 0.05))
    kind = draw(st.integers(0, 9))
    return [
        a,
        a * number + b,
        a * b,
        (number - a) * (number - b),
        a * a * number,
        1.0 * number,
        -a,
        a.sin() * b,
        (a * number).cos(),
        a * b * a,
    ][kind]


@st.composite
def circuits(draw, most_qubits=5, most_gates=14):
    n = draw(st.integers(1, most_qubits))
    x, w = ParameterVector("x", 2), ParameterVector("w", 3)
    circuit = QuantumCircuit(n, global_phase=draw(st.floats(-3, 3)))
    for _ in range(draw(st.integers(1, most_gates))):
        turned = draw(st.booleans())
        arity = draw(st.integers(1, min(n, 2 if turned else 4)))
        qubits = draw(st.permutations(range(n)))[:arity]
        if turned:
            gate, count = draw(st.sampled_from(TURNED[arity]))
            operation = gate(*[_expression(draw, x, w) for _ in range(count)])
        elif draw(st.integers(0, 5)) == 0:
            operation = UnitaryGate(random_unitary(2 ** min(arity, 2), seed=draw(st.integers(0, 99))))
            qubits = qubits[: min(arity, 2)]
        else:
            operation = draw(st.sampled_from(FIXED[arity]))()
            if arity == 1 and n > 1 and draw(st.integers(0, 4)) == 0:
                operation = operation.control(1, ctrl_state=draw(st.integers(0, 1)))
                qubits = draw(st.permutations(range(n)))[:2]
        circuit.append(operation, qubits)
        if draw(st.integers(0, 8)) == 0:
            circuit.barrier()
    return circuit, list(x), list(w)


def random_observables(n, rng, count=2):
    out = []
    for _ in range(count):
        labels = ["".join(rng.choice(list("IXYZ"), n)) for _ in range(3)]
        out.append(SparsePauliOp([*labels, "I" * n], rng.normal(size=4)))
    return out


def bound(circuit, parameters, values):
    return circuit.assign_parameters({p: v for p, v in zip(parameters, values, strict=True) if p in circuit.parameters})


def expectations(circuit, parameters, values, observables):
    state = Statevector(bound(circuit, parameters, values))
    return np.array([state.expectation_value(o).real for o in observables])


def central(f, at, step=2e-3):
    """Sixth-order central difference: error below 1e-11 for angles of this size."""
    out = []
    for i in range(len(at)):
        e = np.eye(len(at))[i] * step
        d = [f(at + k * e) - f(at - k * e) for k in (1, 2, 3, 4)]
        out.append((d[0] * 4 / 5 - d[1] / 5 + d[2] * 4 / 105 - d[3] / 280) / step)
    return np.stack(out, axis=-1)


@given(circuits(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_values_states_and_gradients_equal_qiskit(drawn, seed):
    circuit, x, w = drawn
    rng = np.random.default_rng(seed)
    inputs, weights = rng.uniform(-1.5, 1.5, (3, 2)), rng.uniform(-1.5, 1.5, 3)
    observables = random_observables(circuit.num_qubits, rng)
    engine = ExactEngine(circuit, observables, input_parameters=x, weight_parameters=w)
    states = engine.states(inputs, weights)
    values, by_weights, by_inputs = engine.jacobian(inputs, weights, input_gradient=True)
    only_weights = engine.jacobian(inputs, weights)[1]
    np.testing.assert_allclose(only_weights, by_weights, atol=1e-12)
    np.testing.assert_allclose(engine.expectations(inputs, weights), values, atol=1e-12)
    bar = rng.normal(size=values.shape)
    np.testing.assert_allclose(engine.vjp(inputs, weights, bar)[1], np.einsum("nk,nkp->p", bar, by_weights), atol=1e-11)
    for n in range(3):
        point = np.concatenate([inputs[n], weights])
        np.testing.assert_allclose(states[n], Statevector(bound(circuit, x + w, point)).data, atol=1e-9)
        np.testing.assert_allclose(values[n], expectations(circuit, x + w, point, observables), atol=1e-9)
    point = np.concatenate([inputs[0], weights])
    expected = central(lambda v: expectations(circuit, x + w, v, observables), point)
    np.testing.assert_allclose(by_inputs[0], expected[:, :2], atol=1e-8)
    np.testing.assert_allclose(by_weights[0], expected[:, 2:], atol=1e-8)


@given(st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_gradients_equal_the_parameter_shift_rule(n, seed):
    rng = np.random.default_rng(seed)
    x, w = ParameterVector("x", n), ParameterVector("w", 6)
    circuit = QuantumCircuit(n)
    for q in range(n):
        circuit.ry(x[q], q)
    for parameter in w:  # every weight once, in a gate with two eigenvalues: the two-term rule is exact
        kind, q = rng.integers(5), int(rng.integers(n))
        other = int((q + 1 + rng.integers(max(1, n - 1))) % n)
        if n > 1 and kind > 2:
            [circuit.rzz, circuit.rxx][kind - 3](parameter, q, other)
        else:
            [circuit.rx, circuit.ry, circuit.rz][kind % 3](parameter, q)
        if n > 1:
            circuit.cx(other, q)
    observables = random_observables(n, rng)
    engine = ExactEngine(circuit, observables, input_parameters=x, weight_parameters=w)
    inputs, weights = rng.uniform(-3, 3, (2, n)), rng.uniform(-3, 3, 6)
    _, jacobian, by_inputs = engine.jacobian(inputs, weights, input_gradient=True)
    point = np.concatenate([inputs[1], weights])

    def shifted(i):
        e = np.eye(len(point))[i] * np.pi / 2
        both = [expectations(circuit, [*x, *w], point + s * e, observables) for s in (1, -1)]
        return (both[0] - both[1]) / 2

    for i in range(n):
        np.testing.assert_allclose(by_inputs[1, :, i], shifted(i), atol=1e-9)
    for i in range(6):
        np.testing.assert_allclose(jacobian[1, :, i], shifted(n + i), atol=1e-9)


@pytest.mark.parametrize("qubits", [7, 8])
def test_two_passes_a_layer(qubits):
    rng = np.random.default_rng(qubits)
    w = ParameterVector("w", 3 * qubits)
    circuit = QuantumCircuit(qubits)
    for layer in range(3):
        for q in range(qubits):
            (circuit.ry if layer else circuit.rx)(w[layer * qubits + q], q)
        for q in range(qubits):
            circuit.cx(q, (q + 1) % qubits)
            circuit.cp(w[q], q, (q + 2) % qubits)
    observables = random_observables(qubits, rng)
    engine = ExactEngine(circuit, observables, weight_parameters=w)
    weights = rng.normal(size=len(w))
    values, jacobian, _ = engine.jacobian(np.zeros((1, 0)), weights)
    np.testing.assert_allclose(values[0], expectations(circuit, list(w), weights, observables), atol=1e-9)
    expected = central(lambda v: expectations(circuit, list(w), v, observables), weights)
    np.testing.assert_allclose(jacobian[0], expected, atol=1e-8)
